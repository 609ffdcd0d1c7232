"""`GroundingTask` as Uni-Med is trained: mixed batches, losses and statistics of tasks, numbers per benchmark."""

import dataclasses

import numpy as np
import pytest
import torch
from closeness import MODEL, assert_all_close, assert_close

from unimed.data.collate.grounded import GroundedCollator
from unimed.evaluation.scorers.multi_task import score_benchmarks
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.models.dialects.boxes import PERCENT
from unimed.registry import COLLATORS, TASKS
from unimed.structures import Region, Sample, TaskNameError
from unimed.tasks.grounding import INPUTS, GroundingTask

TEXTS = ["where is the liver?", "liver", "is it normal? yes no", "a chest radiograph with clear lungs", "aspirin"] * 4
SMALL = dict(
    type="SmallUniMed",
    texts=TEXTS,
    image_size=56,
    vision_dim=32,
    vision_layers=1,
    hidden_dim=32,
    layers=1,
    vocabulary=400,
)


def sample(task, question, answer, size=(40, 60), **extra):
    image = np.random.default_rng(len(question)).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Sample(
        images=() if task == "qa" else (image,),
        geometry=Geometry.pixels(),
        sample_id=f"{task}-{question}",
        conversation=(("user", question), ("assistant", answer)),
        labels={"task": task} | extra.pop("labels", {}),
        **extra,
    )


MIXED = [
    sample("vqa", "is it normal?", "yes"),
    sample("refer", "where is the liver?", "{<10><20><50><60>}"),
    sample("qa", "aspirin", "no"),
    sample("caption", "what?", "a chest radiograph with clear lungs"),
    sample("classification", "which?", "liver"),
]


@pytest.fixture(scope="module")
def task():
    connector = {"load_balancing_weight": 0.01, "z_loss_weight": 0.001}
    return GroundingTask(SMALL, connector=connector, reduction="samples", max_new_tokens=3, scores="benchmarks")


def test_configs_with_the_former_names_open_with_one_warning(caplog):
    with caplog.at_level("WARNING", "unimed"):
        old = TASKS.build(dict(type="MultiTask", model={k: v for k, v in SMALL.items() if k != "type"}))
        again = TASKS.build(dict(type="MultiTask", model=SMALL, max_new_tokens=3))
        collator = COLLATORS.build(dict(type="UniMedCollator", processor=old.processor))
    assert type(old) is GroundingTask and type(collator) is GroundedCollator
    assert (old.scores, old.max_new_tokens, again.max_new_tokens) == ("benchmarks", 100, 3)
    assert old.processor.dialect.to_dict() == again.processor.dialect.to_dict()
    said = [record.message for record in caplog.records]
    now = "task 'MultiTask' is dict(type='GroundingTask', scores='benchmarks', max_new_tokens=100, ...) now"
    assert said.count(now) <= 1 and sum("is dict(type='GroundedCollator', ...) now" in line for line in said) <= 1
    assert not set(("MultiTask", "UniMedCollator")) & {*TASKS.module_dict, *COLLATORS.module_dict}
    assert "vqa" in old.card_example and old.headline_metrics[0] == "*/accuracy"


def test_a_mixed_batch_loses_what_single_batches_lose(task):
    collate = GroundedCollator(task.processor)
    task.eval()
    with torch.no_grad():

        def losses(samples):
            batch = collate(samples)
            inputs = {name: batch[name] for name in INPUTS if name in batch}
            return task.model(**inputs, task=task._routing(batch)).sample_losses

        together = losses(MIXED)
        alone = torch.cat([losses([one]) for one in MIXED])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)


def test_training_learns_and_notes_who_used_what(task):
    collate = GroundedCollator(task.processor)
    task.train()
    task.task_summary()
    optimizer = torch.optim.AdamW(task.train_parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        output = task(collate(MIXED))
        assert_close(output["loss"], output["text"] + output["connector"], "loss")
        output["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output["text"].detach()))
    assert losses[-1] < 0.7 * losses[0]
    summary = task.task_summary()
    assert {name.split("/")[1] for name in summary if name.startswith("loss/")} == {
        "vqa", "refer", "qa", "caption", "cls",
    }  # fmt: skip
    for name in ("vqa", "refer", "caption", "cls"):
        weights = [summary[f"routing/{name}/expert_{e}"] for e in range(5)]
        assert sum(weights) == pytest.approx(1.0, abs=1e-4)
    assert not any(key.startswith("routing/qa") for key in summary)
    assert task.task_summary() == {}


def test_predictions_are_scored_per_benchmark(task):
    predictions = task.predict_samples(MIXED[:1] + MIXED[2:])
    scores = task.score(MIXED[:1] + MIXED[2:], predictions)["summary"]
    assert {name.split("/")[0] for name in scores} == {"vqa", "qa", "caption", "cls"}


def test_the_default_is_right_where_the_published_numbers_are_not():
    closed = sample("vqa", "is it normal?", "no", labels={"answer_type": "CLOSED"})
    said = [Prediction("unknown")]
    assert score_benchmarks([closed], said)["summary"]["vqa/closed_accuracy"] == 0.0
    assert score_benchmarks([closed], said, "reference")["summary"]["vqa/closed/acc_score"] == 1.0
    where = sample("refer", "liver", "", size=(100, 100), regions=(Region("liver", box_xyxy_px=(0, 0, 10, 10)),))
    answer = Prediction("{<0><0><10><5>}", regions=(Region("liver", box_xyxy_px=(0, 0, 10, 5)),))
    assert score_benchmarks([where], [answer])["summary"]["refer/miou"] == pytest.approx(0.5)
    assert score_benchmarks([where], [answer], "reference")["summary"]["refer/miou"] == pytest.approx(66 / 121)
    with pytest.raises(ValueError, match="compat 'old'"):
        score_benchmarks([where], [answer], "old")


def test_tables_hold_intervals_and_what_answers_without_the_image_reach():
    asked = [
        sample("vqa", "is it normal?", answer, labels={"answer_type": "CLOSED"}) for answer in ["yes"] * 3 + ["no"]
    ]
    asked = [dataclasses.replace(one, sample_id=str(number)) for number, one in enumerate(asked)]
    scores = score_benchmarks(asked, [Prediction(answer) for answer in ("yes", "yes", "no", "no")])
    model, blind = scores["tables"]["vqa"]
    assert model["benchmark"] == "vqa" and model["samples"] == 4 and "without" not in model["benchmark"]
    assert model["accuracy"].value == 0.75 == blind["accuracy"], "always yes is right three times of four"
    assert 0 <= model["accuracy"].low < 0.75 < model["accuracy"].high <= 1
    boxes = [(0, 0, 50, 50), (2, 2, 52, 52), (90, 90, 100, 100)]
    where = [
        sample("refer", "liver", "", size=(100, 100), regions=(Region("liver", box_xyxy_px=box),)) for box in boxes
    ]
    where = [dataclasses.replace(one, sample_id=str(number)) for number, one in enumerate(where)]
    said = [Prediction("", regions=(Region("liver", box_xyxy_px=box),)) for box in boxes]
    model, blind = score_benchmarks(where, said)["tables"]["refer"]
    assert model["miou"].value == 1.0 and 0.5 < blind["miou"] < 0.9
    cases = score_benchmarks(asked, said[:1] * 4)["cases"]
    assert all(row["question"] == "is it normal?" and row["truth"] in ("yes", "no") for row in cases)
    assert "tables" not in score_benchmarks(where, said, resamples=0)
    assert score_benchmarks(where, said, "reference")["tables"]["refer"][1]["miou"] > 0.3


def test_wrong_names_are_refused(task):
    with pytest.raises(TaskNameError, match="'segment' is not known.*vqa"):
        GroundedCollator(task.processor)([sample("segment", "x", "y")])
    with pytest.raises(ValueError, match="reduction 'sum'"):
        GroundingTask(SMALL, reduction="sum")


def test_exported_and_opened_again(task, tmp_path):
    import unimed

    task.eval()
    before = task.predict_samples(MIXED[:2])
    task.export(tmp_path / "out")
    after = unimed.load(tmp_path / "out", device="cpu").predict_batch(
        [list(s.images) for s in MIXED[:2]], [s.conversation[0][1] for s in MIXED[:2]], task=["vqa", "refer"],
        max_new_tokens=3,
    )  # fmt: skip
    assert [p.text for p in after] == [p.text for p in before]


def test_box_text():
    assert box_text((100, 50, 300, 200), 512, 512) == "{<19><9><58><39>}"
    assert box_text((-5, 0, 600, 10), 500, 100) == "{<-1><0><120><10>}"


@pytest.mark.parametrize("reduction", ["tokens", "samples"])
def test_parts_with_shared_counts_are_the_joined_batch(reduction):
    task = GroundingTask(SMALL, reduction=reduction, scores="benchmarks")
    task.eval()
    collate = GroundedCollator(task.processor)

    def gradients(batches):
        task.zero_grad()
        for batch in batches:
            (task(batch)["loss"] / len(batches)).backward()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in task.named_parameters()}

    parts = [collate(MIXED[:2] + MIXED[3:]), collate(MIXED[2:3])]  # the second holds no image
    counts = [task.normalizers(batch) for batch in parts]
    shared = {name: sum(c[name] for c in counts) / 2 for name in counts[0]}
    whole = gradients([collate(MIXED)])
    split = gradients([batch | {"normalizers": shared} for batch in parts])
    assert_all_close(split, whole, MODEL)


def box_text(box, width, height):
    fractions = tuple(value / side for value, side in zip(box, (width, height) * 2, strict=True))
    return PERCENT.write("", [fractions], (height, width))

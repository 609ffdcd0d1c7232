import sys

import numpy as np
import pytest
import torch
from closeness import MODEL, assert_all_close, assert_close
from small_models import TEXTS, tiny_mask_config

from unimed.data.collate.grounded import GroundedCollator, RegionCountError
from unimed.evaluation.scorers.grounding import score_grounding
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.registry import TASKS
from unimed.structures import Region, Sample
from unimed.tasks.grounding import INPUTS


def sample(index=0, task="referring", answer="<p> nuclei </p> [SEG].", regions=None, **labels):
    image = np.random.default_rng(index).integers(0, 255, (40, 30), dtype=np.uint8)
    mask = np.zeros((40, 30), bool)
    mask[5:20, 4:15] = True
    if regions is None:
        regions = (Region("nuclei", mask=mask, presence=1.0),)
    return Sample(
        images=(image,),
        geometry=Geometry.pixels(),
        sample_id=f"s{index}",
        conversation=(("user", "segment the nuclei"), ("assistant", answer)),
        regions=regions,
        labels={"task": task, **labels},
        patient_id=f"p{index}",
    )


def task(**options):
    model = dict(
        texts=TEXTS, hidden_dim=32, layers=2, heads=2, vision_grid=2, mask_config=tiny_mask_config(), box_head=None
    )
    return TASKS.build(dict(type="GroundingTask", model=model, **options))


def test_the_loss_falls_and_every_learning_part_moves():
    torch.manual_seed(0)
    grounding = task(cache_images=8)
    batch = GroundedCollator(grounding.processor)([sample(0), sample(1)])
    assert batch["masks"].shape == (2, 32, 32) and batch["sample_ids"] == ["s0", "s1"]
    before = {name: p.detach().clone() for name, p in grounding.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(grounding.train_parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = grounding(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    still = [n for n, p in grounding.named_parameters() if n in before and torch.equal(p, before[n])]
    assert still == []
    grounding.eval()
    region = grounding.predict_samples([sample(0)])[0].regions[0]
    assert (region.mask & sample(0).regions[0].mask).sum() > 0.7 * region.mask.sum() > 0


def test_a_batch_without_masks_touches_the_same_parameters():
    grounding = task()
    collate = GroundedCollator(grounding.processor)
    plain = sample(3, "vqa", "two.", ())
    grounding(collate([plain]))["loss"].backward()
    without = {name for name, p in grounding.named_parameters() if p.grad is not None}
    grounding.zero_grad()
    grounding(collate([sample(0)]))["loss"].backward()
    assert without == {name for name, p in grounding.named_parameters() if p.grad is not None}


def test_features_are_kept_and_are_the_same():
    kept, fresh = task(cache_images=8), task()
    fresh.load_state_dict(kept.state_dict())
    batch = GroundedCollator(kept.processor)([sample(0), sample(1)])
    kept.eval(), fresh.eval()
    with torch.no_grad():
        first, second = kept(batch)["loss"], kept(batch)["loss"]
        assert torch.equal(first, second)
        assert abs(first - fresh(batch)["loss"]) < 1e-3  # features are kept in half precision


def test_lora_learns_alone_and_merges(tmp_path):
    grounding = task(lora=dict(r=2))
    learning = [n for n, p in grounding.named_parameters() if p.requires_grad and "language" in n or "lora" in n]
    assert learning and all("lora" in name for name in learning if "layers" in name)
    for name, parameter in grounding.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    batch = GroundedCollator(grounding.processor)([sample(0)])
    expected = grounding.eval()(batch)["text"]
    grounding.export(tmp_path / "model")
    again = TASKS.build(dict(type="GroundingTask", model=str(tmp_path / "model"))).eval()
    assert abs(again(batch)["text"] - expected) < 1e-4


def test_four_bit_weights_learn_through_adapters_and_export(tmp_path):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    grounding = task(lora=dict(r=4, quantize="nf4"))
    quantised = [n for n, m in grounding.named_modules() if n.endswith("base_layer") and m.weight.dtype == torch.uint8]
    assert len(quantised) == 2 * 7 and "q_proj" in "".join(quantised)
    batch = GroundedCollator(grounding.processor)([sample(0), sample(1)])
    optimizer = torch.optim.AdamW(grounding.train_parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = grounding(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    grounding.eval()
    expected = grounding(batch)["text"]
    grounding.export(tmp_path / "model")
    again = TASKS.build(dict(type="GroundingTask", model=str(tmp_path / "model"))).eval()
    assert abs(again(batch)["text"] - expected) < 1e-3


def test_four_bits_without_bitsandbytes_and_an_unknown_format_are_named(monkeypatch):
    with pytest.raises(ValueError, match="'nf5' is not known; choose one of: nf4, fp4"):
        task(lora=dict(quantize="nf5"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install unimed\[quant\]"):
        task(lora=dict(quantize="nf4"))


def test_experts_are_routed_by_the_task_of_each_sample():
    experts = dict(projector_type="moe_linear", resample_method="none", task_token_c=8, num_experts=3)
    model = dict(
        texts=TEXTS, hidden_dim=32, layers=1, heads=2, vision_grid=2, mask_config=tiny_mask_config(), box_head=None
    )
    grounding = TASKS.build(dict(type="GroundingTask", model=model | dict(connector=experts), max_new_tokens=3)).eval()
    samples = mixed_samples()
    for pack in (0, 80):
        collate = GroundedCollator(grounding.processor, pack=pack)
        backwards = gradients(grounding, [collate(samples[::-1])])
        assert_all_close(gradients(grounding, [collate(samples)]), backwards, MODEL)
    tokens = grounding.model.connector.task_tokens
    assert all(tokens[name].grad.abs().sum() > 0 for name in ("refer", "vqa")) and tokens["cls"].grad is None
    assert len(grounding.predict_samples(samples)) == 5
    with pytest.raises(ValueError, match="sample s9: task 'odd' is not known; choose one of: referring"):
        grounding(collate([sample(9, "odd", "two.", ())]))


def test_recomputed_activations_give_the_same_gradients():
    grounding, batch = task(), None
    batch = GroundedCollator(grounding.processor)(mixed_samples())
    grounding.train()
    kept = gradients(grounding, [batch])
    grounding.gradient_checkpointing_enable()
    layers = grounding.shard_modules()
    assert all(layer.gradient_checkpointing for layer in layers)
    again = gradients(grounding, [batch])
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


def test_tokens_and_regions_must_match():
    collate = GroundedCollator(task().processor)
    with pytest.raises(RegionCountError, match="s4.*2 .*tokens.* 1 regions"):
        collate([sample(4, answer="[SEG] and [SEG]")])
    absent = sample(5, "absent", "No.", (Region("lesion", presence=0.0),))
    assert len(collate([absent])["masks"]) == 0


def test_unknown_loss_weights_are_named():
    with pytest.raises(ValueError, match="'mask'"):
        task(loss_weights={"mask": 1})


def answered(text, regions=()):
    return Prediction(text, tuple(regions))


def test_a_model_that_never_points_has_a_grounding_rate_of_zero():
    samples = [sample(0), sample(1), sample(3, "vqa", "two.", ())]
    pointing = answered("<p> nuclei </p> [SEG].", sample(0).regions)
    assert score_grounding(samples, [answered("yes.")] * 3)["summary"]["grounding_rate"] == 0
    assert score_grounding(samples, [pointing, answered("no."), answered("two.")])["summary"]["grounding_rate"] == 0.5
    assert "grounding_rate" not in score_grounding(samples[2:], [answered("two.")])["summary"]


def test_scores_stand_beside_their_baselines():
    truth = sample(0).regions[0]
    half = truth.mask.copy()
    half[:12] = False
    samples = [
        sample(0),
        sample(1),
        sample(2, "absent", "No.", (Region("lesion", presence=0.0),)),
        sample(3, "vqa", "two.", (), choices=["one", "two"]),
        sample(4, "caption", "an image of cells.", ()),
    ]
    predictions = [
        answered("nuclei.", [Region("nuclei", mask=truth.mask, presence=0.9)]),
        answered("nuclei.", [Region("nuclei", mask=half, presence=0.8)]),
        answered("Yes, lesion.", [Region("lesion", mask=half, presence=0.7)]),
        answered("Two."),
        answered("an image of cells."),
    ]
    train = [sample(9), sample(8, "vqa", "one.", (), choices=["one", "two"])]
    report = score_grounding(samples, predictions, train, blind=[answered("one.")])
    masks = report["tables"]["masks"][0]
    assert masks["cases"] == 2 and 0.5 < masks["dice"].value < 1.0 and masks["copy_baseline_dice"].value == 1.0
    assert report["summary"]["false_mask_rate"] == 1.0
    answers = report["tables"]["answers"][0]
    assert (answers["correct"].value, answers["majority_baseline"].value, answers["language_only"].value) == (1, 0, 0)
    assert (
        report["summary"]["rouge_l/caption"] == pytest.approx(1.0) if "rouge_l/caption" in report["summary"] else True
    )
    assert "p0" not in str(report["cases"]), "no patient id leaves the task"
    nothing = score_grounding(samples[:1], [answered("I see nothing.")])
    assert nothing["summary"]["dice/nuclei"] == 0.0 and not nothing["cases"][0]["answered"]


def mixed_samples():
    """Answers with a mask, two masks, none, and of several lengths."""
    mask = np.zeros((40, 30), bool)
    mask[5:20, 4:15] = True
    two = (Region("nuclei", mask=mask, presence=1.0), Region("cells", mask=~mask, presence=1.0))
    return [
        sample(0),
        sample(1, "vqa", "two.", ()),
        sample(2, answer="<p> nuclei </p> [SEG] and <p> cells </p> [SEG].", regions=two),
        sample(3, "vqa", "there are two of them in the picture.", ()),
        sample(4),
    ]


def gradients(grounding, batches):
    grounding.zero_grad()
    for batch in batches:
        (grounding(batch)["loss"] / len(batches)).backward()
    return {name: p.grad.clone() for name, p in grounding.named_parameters() if p.grad is not None}


def test_packed_rows_give_the_loss_of_padded_ones():
    grounding, samples = task(), mixed_samples()
    padded = GroundedCollator(grounding.processor)(samples)
    packed = GroundedCollator(grounding.processor, pack=80)(samples)
    assert len(packed["input_ids"]) < len(padded["input_ids"])
    assert (packed["layout"].sample_of_token >= 0).sum() == padded["attention_mask"].sum()
    grounding.eval()
    first, second = grounding(padded), grounding(packed)
    for name in first:
        assert first[name].item() == pytest.approx(second[name].item(), rel=MODEL), name
    assert_all_close(gradients(grounding, [padded]), gradients(grounding, [packed]), MODEL)
    hidden = {}
    for kind, batch in (("padded", padded), ("packed", packed)):
        output = grounding.model(**{name: batch[name] for name in INPUTS if name in batch})
        for place, sample_id in enumerate(batch["sample_ids"]):
            if kind == "padded":
                states = output.hidden[place][batch["attention_mask"][place] > 0]
            else:
                states = output.hidden[batch["layout"].sample_of_token == place]
            hidden.setdefault(sample_id, []).append(states)
    for name, (ours, theirs) in hidden.items():
        assert_close(ours, theirs, name, MODEL)


def test_parts_with_shared_counts_are_the_joined_batch():
    grounding, samples = task(), mixed_samples()
    grounding.eval()
    collate = GroundedCollator(grounding.processor)
    # The second part holds no mask at all, as a rank may.
    parts = [collate([samples[0], samples[2], samples[4]]), collate([samples[1], samples[3]])]
    joined = collate(samples)
    counts = [grounding.normalizers(batch) for batch in parts]
    shared = {name: sum(c[name] for c in counts) / 2 for name in counts[0]}
    for batch in parts:
        batch["normalizers"] = shared
    assert_all_close(gradients(grounding, [joined]), gradients(grounding, parts), MODEL)


def test_a_model_without_a_presence_head_says_by_its_mask_what_is_there():
    truth = sample(0).regions[0]
    absent = sample(1, "absent", "No.", (Region("lesion", presence=0.0),))
    shown = answered("it is.", [Region("nuclei", mask=truth.mask)])
    empty = answered("it is.", [Region("lesion", mask=np.zeros_like(truth.mask))])
    summary = score_grounding([sample(0), absent], [shown, empty])["summary"]
    assert summary["presence_accuracy"] == 1 and summary["false_mask_rate"] == 0
    summary = score_grounding([sample(0), absent], [empty, shown])["summary"]
    assert summary["presence_accuracy"] == 0 and summary["false_mask_rate"] == 1


def test_a_mask_given_with_the_question_is_not_asked_for():
    described = sample(0, "region", "region1 shows nuclei.")
    scores = score_grounding([described], [answered("region1 shows nuclei.")])
    assert "masks" not in scores["tables"] and scores["summary"]["bleu_1/region"] > 0.99


def test_volumes_and_slices_of_one_name_have_their_own_copies():
    flat, deep = np.zeros((8, 8), bool), np.zeros((4, 8, 8), bool)
    flat[2:6, 2:6], deep[1:3, 2:6, 2:6] = True, True
    slices = [sample(i, regions=(Region("nuclei", mask=flat),)) for i in range(2)]
    volumes = [sample(9, task="volume", regions=(Region("nuclei", mask=np.roll(deep, shift, 1)),)) for shift in (0, 2)]
    tested = [slices[0], volumes[0]]
    given = [Prediction("", (Region("nuclei", mask=one.regions[0].mask),)) for one in tested]
    rows = score_grounding(tested, given, [slices[1], volumes[1]])["cases"]
    copies = {row["task"]: row["copy_baseline_dice"] for row in rows if row["kind"] == "mask"}
    assert copies == {"referring": 1.0, "volume": 0.5}

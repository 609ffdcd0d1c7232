"""Every registered task: built small, one step, validation, scores and export, through nothing but `Task`."""

import numpy as np
import pytest
import torch
from tasks import test_grounding_benchmarks as benchmarks
from tasks import test_parsing as parsing
from tasks import test_report_grounding as reports

import unimed
from unimed.engine.training import build_collator
from unimed.geometry import Geometry
from unimed.registry import TASKS, registered
from unimed.structures import Sample
from unimed.tasks.base import Task

CAPTIONS = ["a bright disc", "a dark square", "nothing is shown", "a disc and a square"]


def captioned(number):
    image = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    labels = {"captions": [CAPTIONS[number % 4]]}
    return Sample((image,), Geometry.pixels(), f"c{number}", labels=labels, patient_id=f"p{number}")


def grounded():
    from tasks import test_grounding as grounding

    return grounding.task(max_new_tokens=3), [grounding.sample(n) for n in range(3)], "GroundedCollator"


def contrastive():
    model = dict(type="SmallClip", texts=CAPTIONS, image_size=32)
    return TASKS.build(dict(type="ContrastiveTask", model=model)), [captioned(n) for n in range(4)], "ImageTextCollator"


#: Task -> () -> (task, samples, collator).
EXAMPLES = {
    "GroundingTask": grounded,
    "GroundingTask for benchmarks": lambda: (
        TASKS.build(dict(type="GroundingTask", model=benchmarks.SMALL, scores="benchmarks", max_new_tokens=3)),
        benchmarks.MIXED,
        "GroundedCollator",
    ),
    "ParseTask": lambda: (
        TASKS.build(dict(type="ParseTask", model=parsing.SMALL_MODEL)),
        [parsing.picture(n) for n in range(3)],
        "ParseCollator",
    ),
    "ReportGrounding": lambda: (reports.task(), [reports.sample(n, n % 2 + 1) for n in range(3)], "GroundedCollator"),
    "ContrastiveTask": contrastive,
}


def test_every_registered_task_has_an_example():
    ours = {name for name, one in registered(TASKS).items() if one.__module__.startswith("unimed.")}
    assert ours == {name.split()[0] for name in EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_step_a_validation_and_an_export(name, tmp_path):
    task, samples, collator = EXAMPLES[name]()
    assert isinstance(task, Task) and task.processor is not None
    torch.manual_seed(0)
    batch = build_collator(dict(type=collator), task)(samples)
    groups = task.train()(batch), task.train_parameters()
    losses, parameters = groups
    assert losses["loss"].ndim == 0 and torch.isfinite(losses["loss"])
    losses["loss"].backward()
    optimizer = torch.optim.AdamW([{k: v for k, v in group.items() if k != "lr_mult"} for group in parameters], lr=1e-3)
    trained = [parameter for group in parameters for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in trained]
    optimizer.step()
    task.after_step()
    assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    assert {id(p) for p in trained} == {id(p) for p in task.parameters() if p.requires_grad}
    task.eval()
    with torch.no_grad():
        predictions = task.predict_samples(samples)
        assert len(predictions) == len(samples)
        numbers = task.validate(samples, predictions)
    assert numbers and all(isinstance(value, int | float) for value in numbers.values())
    scores = task.score(samples, predictions)
    assert isinstance(scores, dict) and scores
    assert all(isinstance(count, int | float) for count in task.normalizers(batch).values())
    task.export(tmp_path / "exported")
    again = unimed.load(tmp_path / "exported", device="cpu")
    for key, value in task.model.state_dict().items():
        assert torch.equal(value.float(), again.state_dict()[key].float()), key

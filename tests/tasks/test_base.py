"""Every registered task is a `Task`; what the base class does holds for all of them."""

import inspect

import pytest
import torch
from torch import nn

from unimed.io.result import Prediction
from unimed.registry import TASKS, _choices
from unimed.tasks.base import Task

SHIPPED = [
    n for n in _choices(TASKS) if inspect.isclass(TASKS.get(n)) and TASKS.get(n).__module__[:12] == "unimed.tasks"
]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_task_has_the_interface_of_the_base(name):
    cls = TASKS.get(name)
    assert issubclass(cls, Task)
    for method in ("forward", "predict_samples", "score"):
        assert getattr(cls, method) is not getattr(Task, method), method
    for method, function in inspect.getmembers(Task, inspect.isfunction):
        wanted, given = (inspect.signature(f).parameters for f in (function, getattr(cls, method)))
        assert method == "__init__" or list(wanted) == list(given)[: len(wanted)], method


class Model(nn.Module):
    processor = "processor"

    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.head_ln = nn.Linear(4, 2, bias=False)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


class Words(Task):
    undecayed_words = ("ln",)


def named(model, groups):
    names = {id(p): n for n, p in model.named_parameters()}
    return [(g["lr_mult"], "weight_decay" not in g, [names[id(p)] for p in g["params"]]) for g in groups]


def test_one_rule_of_decay_and_learning_rates_by_prefix():
    model = Model()
    assert named(model, Task(model).train_parameters()) == [
        (1.0, True, ["body.weight", "head_ln.weight"]),
        (1.0, False, ["body.bias", "norm.weight", "norm.bias"]),
    ]
    assert named(model, Words(model, {"body": 0.1}).train_parameters()) == [
        (0.1, True, ["body.weight"]),
        (0.1, False, ["body.bias"]),
        (1.0, False, ["norm.weight", "norm.bias", "head_ln.weight"]),
    ]
    task = Task()
    task.own = nn.Linear(2, 1)
    assert named(task, task.train_parameters()) == [(1.0, True, ["own.weight"]), (1.0, False, ["own.bias"])]


def test_defaults():
    task = Task(Model())
    assert task.processor == "processor" and Task().processor is None
    assert task.normalizers({}) == {} and task.shard_modules() == [] and task.task_summary() is None
    for call in (lambda: task.forward({}), lambda: task.predict_samples([]), lambda: task.score([], [])):
        with pytest.raises(NotImplementedError, match="^Task "):
            call()
    with pytest.raises(ValueError, match="no model to export"):
        Task().export("folder")
    with pytest.raises(ValueError, match="neither the task nor a model in it supports it"):
        task.gradient_checkpointing_enable()


class Scored(Task):
    def predict_samples(self, samples):
        return [Prediction(text=str(sample)) for sample in samples]

    def score(self, samples, predictions, train=()):
        right = sum(p.text == str(s) for s, p in zip(samples, predictions, strict=True))
        return {"summary": {"right": right, "rate": right / len(samples), "note": "text", "all": True}, "cases": []}


def test_validation_is_the_numbers_of_the_summary():
    assert Scored().validate([1, 2]) == {"right": 2, "rate": 1.0}
    assert Scored().validate([1, 2], [Prediction(text="1"), Prediction(text="x")]) == {"right": 1, "rate": 0.5}


def test_state_of_a_task_is_that_of_its_model():
    task = Task(Model())
    assert all(name.startswith("model.") for name in task.state_dict())
    assert torch.equal(task.state_dict()["model.body.weight"], task.model.body.weight)

"""The hook compares gradients of tasks and leaves training exactly as it is."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unimed.engine import train


def settings(hooks, **changes):
    part = dict(type="TinyPoints", size=23, augment=True)
    return {
        "task": dict(type="TinyTask"),
        "train_data": dict(
            mixture=[
                dict(dataset=dict(part), weight=1.0, name="near"),
                dict(dataset=dict(part, seed=3), weight=1.0, name="far"),
            ]
        ),
        "collate": dict(type="TinyCollator"),
        "optimizer": dict(type="AdamW", lr=1e-2),
        "batch_size": 4,
        "max_steps": 6,
        "device": "cpu",
        "hooks": hooks,
        "checkpoint": dict(interval=0, keep=1),
        "log": dict(interval=3, curves=False),
    } | changes


def test_training_is_the_same_with_and_without_it(tiny, tmp_path):
    hook = dict(type="GradientConflictHook", interval=3, samples_per_task=8, batch_size=4)
    plain = train(settings([]), tmp_path / "plain")
    watched = train(settings([hook]), tmp_path / "watched")
    weights = [load_file(next((tmp_path / name).rglob("model.safetensors"))) for name in ("plain", "watched")]
    assert plain["loss"] == watched["loss"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    lines = [json.loads(line) for line in (tmp_path / "watched" / "tug_of_war.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 6]
    assert lines[0]["tasks"] == ["near", "far"]
    body = lines[-1]["modules"]["body"]
    np.testing.assert_allclose(np.diag(body["direction"]), 1.0, atol=1e-6)
    assert body["direction"][0][1] == pytest.approx(body["direction"][1][0])
    assert lines[0]["modules"]["body"]["parameters"]["moved"] == 0
    assert body["parameters"]["moved"] > 0
    assert body["parameters"]["count"] == 6 * 16 + 16
    assert "frozen" not in lines[0]["modules"]
    assert (tmp_path / "watched" / "tug_of_war_direction_body.png").stat().st_size > 1000


def test_wrong_use_is_named(tiny, tmp_path):
    with pytest.raises(ValueError, match="no trainable parameter begins with 'frozen'.*body"):
        train(settings([dict(type="GradientConflictHook", modules=["frozen"])]), tmp_path / "a")
    one = dict(mixture=[dict(dataset=dict(type="TinyPoints"), name="near")])
    with pytest.raises(ValueError, match=r"two tasks at least, train_data holds \['near'\]"):
        train(settings([dict(type="GradientConflictHook")], train_data=one), tmp_path / "b")
    with pytest.raises(TypeError, match="RoutingHook needs a task with task_summary"):
        train(settings([dict(type="RoutingHook")]), tmp_path / "c")

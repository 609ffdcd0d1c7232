"""Training, resuming and testing of a tiny task in one process."""

import json

import pytest
import torch
from closeness import assert_all_close
from safetensors.torch import load_file

from unimed.engine import evaluate, train
from unimed.engine.loop import TrainingError, schedule_factor


def losses(folder):
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def weights(folder, step):
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = train(tiny.config(log=dict(interval=1)), folder)
    return folder, result


def test_run_folder_is_complete(whole_run):
    folder, result = whole_run
    assert result["step"] == 24 and result["stopped"] == ""
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_00000020", "step_00000024"]
    assert json.loads((folder / "env.json").read_text())["versions"]["torch"]
    modes = {path.stat().st_mode & 0o777 for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    assert modes == {(folder / "train.jsonl").stat().st_mode & 0o777}  # colleagues may read the weights, too
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "TinyTask" in (folder / "config.py").read_text()
    values = losses(folder)
    assert len(values) == 24 and sum(values[-6:]) < sum(values[:6])


def test_validation_is_logged(whole_run):
    records = [json.loads(line) for line in (whole_run[0] / "train.jsonl").read_text().splitlines()]
    found = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in found] == [6, 12, 18, 24]
    assert found[-1]["val_loss"] < found[0]["val_loss"] and "error" in found[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_is_the_uninterrupted_run(tiny, whole_run, tmp_path, workers):
    first = train(tiny.config(num_workers=workers), tmp_path, cfg_options={"hooks": [dict(type="StopAt", step=14)]})
    assert first["step"] == 14 and first["stopped"] == "SIGTERM"
    train(tiny.config(num_workers=workers), tmp_path, resume="auto")
    assert losses(tmp_path) == losses(whole_run[0])
    assert_equal_weights(weights(tmp_path, 24), weights(whole_run[0], 24))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_with_everything_on(tiny, tmp_path, workers):
    settings = tiny.everything(num_workers=workers)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "cut", cfg_options={"hooks": [dict(type="StopAt", step=4)]})
    train(settings, tmp_path / "cut", resume="auto")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("model", "ema", "optimizer"):
        file = f"checkpoints/step_00000009/{name}.safetensors"
        assert_equal_weights(load_file(tmp_path / "cut" / file), load_file(tmp_path / "whole" / file))


@pytest.mark.parametrize("optimizer", [dict(type="AdamW", lr=1e-2), dict(type="SGD", lr=1e-3)], ids=["AdamW", "SGD"])
def test_accumulation_equals_the_joined_batch(tiny, tmp_path, optimizer):
    """SGD as well: Adam takes the same step for gradients of any size."""
    task = dict(type="TinyTask", dropout=0.0)
    common = dict(task=task, max_steps=5, validate_interval=0, optimizer=optimizer)
    train(tiny.config(**common, batch_size=8), tmp_path / "joined")
    train(tiny.config(**common, batch_size=2, accumulate=4), tmp_path / "parts")
    assert_all_close(weights(tmp_path / "parts", 5), weights(tmp_path / "joined", 5), 1e-4)


def test_nan_step_is_skipped_and_named(tiny, tmp_path, caplog):
    data = dict(type="TinyPoints", nan=(3,))
    result = train(tiny.config(train_data=data, max_steps=12, validate_interval=0), tmp_path)
    assert result["step"] == 12
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path, 12).values())
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert "skipped: loss nan" in log and "point-3" in log


def test_too_many_nan_steps_end_the_run(tiny, tmp_path):
    data = dict(type="TinyPoints", size=4, nan=(0, 1, 2, 3))
    with pytest.raises(TrainingError, match="3 steps in a row without a finite loss"):
        train(tiny.config(train_data=data, guards=dict(max_bad_steps=3)), tmp_path)


def test_broken_samples_are_replaced_counted_and_limited(tiny, tmp_path):
    data = dict(type="TinyPoints", broken=(5,))
    train(tiny.config(train_data=data, max_steps=8, validate_interval=0), tmp_path / "few")
    assert "broken sample replaced: TinyPoints[5]: OSError" in next((tmp_path / "few").glob("*/*.log")).read_text()
    with pytest.raises(TrainingError, match="broken samples, more than max_broken=1; last: TinyPoints"):
        settings = tiny.config(train_data=dict(type="TinyPoints", broken=tuple(range(8))), guards=dict(max_broken=1))
        train(settings, tmp_path / "many")


def test_new_run_does_not_mix_with_an_old_one(tiny, tmp_path, capfd):
    settings = tiny.config(max_steps=2, validate_interval=0)
    train(settings, tmp_path)
    assert "begins anew" not in "".join(capfd.readouterr())
    train(settings, tmp_path)
    (aside,) = tmp_path.glob("checkpoints-before-*")
    (told,) = [line for line in "".join(capfd.readouterr()).splitlines() if "begins anew" in line]
    assert "up to step 2" in told and f"--resume {aside / 'step_00000002'}" in told and "--resume auto" in told
    assert losses(tmp_path) and len(losses(tmp_path)) == 2


def test_evaluate_writes_cases_and_table(tiny, whole_run, tmp_path):
    trained = evaluate(tiny.config(), whole_run[0], tmp_path)
    fresh = evaluate(tiny.config(), None, tmp_path / "fresh")
    trained, fresh = trained["summary"], fresh["summary"]
    assert trained["cases"] == 8 and trained["mean_error"] < fresh["mean_error"]
    cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert [case["sample_id"] for case in cases] == [f"point-{i}" for i in range(8)]
    assert "| mean_error |" in (tmp_path / "metrics.md").read_text()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", (1.0, 1.0)), ("linear", (0.55, 0.1)), ("cosine", (0.55, 0.1))],
)
def test_schedules(kind, expected):
    schedule = dict(type=kind, warmup=4, warmup_full=False, min_ratio=0.1, milestones=(), gamma=0.1)
    assert schedule_factor(schedule, 0, 24) == pytest.approx(0.2)
    assert schedule_factor(schedule, 14, 24) == pytest.approx(expected[0])
    assert schedule_factor(schedule, 24, 24) == pytest.approx(expected[1])

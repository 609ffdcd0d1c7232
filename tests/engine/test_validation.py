"""Validation never costs a run."""

import json

import pytest

from unimed.data.mixture import DataError
from unimed.engine import train
from unimed.engine.loop import TrainingError


def records(folder, kind):
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            dict(type="TinyPoints", size=3, broken=(0, 1, 2)),
            r"none of the first 3 samples can be read: .*\[2\]",
        ),
        (dict(type="TinyPoints", size=0), "TinyPoints holds no samples"),
        (dict(mixture=[dict(dataset=dict(type="TinyPoints")), dict(dataset=dict(type="TinyMissing"))]), "no split"),
        (dict(mixture=[dict(dataset=dict(type="TinyPoints"))], token_budget=3), "unknown key 'token_budget'"),
    ],
)
def test_what_cannot_be_opened_is_found_before_the_first_step(tiny, tmp_path, data, message):
    with pytest.raises(DataError, match=f"val_data: .*{message}"):
        train(tiny.config(val_data=data), tmp_path)
    assert not (tmp_path / "train.jsonl").exists()


def test_broken_samples_are_left_out_named_once_and_counted(tiny, tmp_path):
    clean = tiny.config(val_data=dict(type="TinyPoints", size=8, seed=2, augment=False))
    broken = tiny.config(val_data=dict(type="TinyPoints", size=9, seed=2, augment=False, broken=(8,)))
    train(clean, tmp_path / "clean")
    train(broken, tmp_path / "broken")
    log = next((tmp_path / "broken").glob("*/*.log")).read_text()
    assert log.count("broken sample") == 1 and "TinyPoints[8]: OSError" in log
    state = json.loads(next((tmp_path / "broken").glob("checkpoints/step_00000024/state.json")).read_text())
    assert state["counters"]["broken"] == 1
    assert len(records(tmp_path / "broken", "validation")) == 4
    with pytest.raises(TrainingError, match="1 broken samples, more than max_broken=0"):
        train(broken | {"guards": dict(max_broken=0)}, tmp_path / "none")


def test_losses_are_those_of_the_readable_samples(tiny, tmp_path):
    """Whatever place the broken one has in a batch."""
    found = {}
    for name, more in (("all", ()), ("without", (3,))):
        data = dict(type="TinyPoints", size=4, seed=2, augment=False, broken=more)
        settings = tiny.config(
            val_data=data, max_steps=1, validate_interval=1, optimizer=dict(type="SGD", lr=0.0), batch_size=1
        )
        train(settings, tmp_path / name)
        found[name] = records(tmp_path / name, "validation")[0]["val_loss_fit"]
    alone = tiny.config(
        val_data=dict(type="TinyPoints", size=4, seed=2, augment=False, broken=(0, 1, 2)), max_steps=1,
        validate_interval=1, optimizer=dict(type="SGD", lr=0.0), batch_size=1,
    )  # fmt: skip
    train(alone, tmp_path / "alone")
    last = records(tmp_path / "alone", "validation")[0]["val_loss_fit"]
    assert (3 * found["without"] + last) / 4 == pytest.approx(found["all"], rel=1e-5)


def test_a_checkpoint_is_there_before_validation_fails(tiny, tmp_path, monkeypatch):
    task = tiny.TASKS.get("TinyTask")
    monkeypatch.setattr(task, "validate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny.config(), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000005", "step_00000006"]
    assert "ZeroDivisionError" in (tmp_path / "error.txt").read_text()
    monkeypatch.undo()
    assert train(tiny.config(), tmp_path, resume="auto")["step"] == 24


def test_the_checkpoint_for_its_time_does_not_count_among_those_that_are_kept(tiny, tmp_path):
    for background in (False, True):
        settings = tiny.config(max_steps=7, validate_interval=2, checkpoint=dict(interval=3, keep=1))
        settings["checkpoint"]["background"] = background
        train(settings, tmp_path / str(background), cfg_options={"hooks": [dict(type="StopAt", step=6)]})
        names = [path.name for path in (tmp_path / str(background) / "checkpoints").iterdir()]
        assert names == ["step_00000006"]
        settings = tiny.config(max_steps=5, validate_interval=2, checkpoint=dict(interval=3, keep=2))
        train(settings, tmp_path / f"{background}-2")
        names = sorted(path.name for path in (tmp_path / f"{background}-2" / "checkpoints").iterdir())
        assert names == ["step_00000003", "step_00000005"]


def test_it_does_not_change_the_training(tiny, tmp_path):
    with_it = train(tiny.config(), tmp_path / "with")
    without = train(tiny.config(validate_interval=0, val_data=None), tmp_path / "without")
    assert with_it["loss"] == without["loss"]


def test_the_line_shows_what_was_measured_and_the_file_everything(tiny, tmp_path, monkeypatch):
    task = tiny.TASKS.get("TinyTask")
    many = {f"m{n}": n / 7 for n in range(20)} | {"nothing": float("nan"), "samples": 33.0, "dice": 0.5}
    monkeypatch.setattr(task, "validate", lambda *args, **kwargs: many)
    monkeypatch.setattr(task, "headline_metrics", ("dice", "nothing", "samples", "not there"))
    train(tiny.config(max_steps=1, validate_interval=1), tmp_path)
    line = next(line for line in next(tmp_path.glob("*/*.log")).read_text().splitlines() if "validation at" in line)
    assert line.split("val_loss ")[1].split("  ")[1:] == [
        "dice 0.5", "samples 33", f"(23 more numbers in {tmp_path / 'train.jsonl'})",
    ]  # fmt: skip
    assert records(tmp_path, "validation")[0]["m19"] == pytest.approx(19 / 7)


def test_epochs_become_steps_when_the_data_are_known(tiny, tmp_path):
    settings = tiny.config(validate_interval=0, accumulate=2) | {"epochs": 1.5, "max_steps": None}
    result = train(settings, tmp_path)
    assert result["step"] == 6  # 1.5 * (23 + 9) / 8
    assert "1.5 epochs of 32 samples are 6 steps of 8" in next(tmp_path.glob("*/*.log")).read_text()
    assert "max_steps = 6" in (tmp_path / "config.py").read_text()

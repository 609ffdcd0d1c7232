"""Everyday mistakes of a user of `train`, `test` and `export`: one line, exit code 1, no traceback."""

import re
import sys

import pytest
from mmengine.config import Config

from unimed.commands.cli import main


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A config and a run of two steps."""
    folder = tmp_path_factory.mktemp("mistakes")
    settings = tiny.config(max_steps=2, validate_interval=0, num_workers=0)
    config = folder / "config.py"
    config.write_text(Config(settings).pretty_text)
    assert main(["train", str(config), "--work-dir", str(folder / "run")]) == 0
    return folder


TRAIN = {
    "option without value": (["--cfg-options", "max_steps"], "KEY=VALUE"),
    "unknown key": (["--cfg-options", "max_step=3"], "did you mean 'max_steps'"),
    "unknown inner key": (["--cfg-options", "log.intervall=3"], "did you mean 'interval'"),
    "text for a number": (["--cfg-options", "batch_size=many"], "batch_size must be int"),
    "no steps": (["--cfg-options", "max_steps=0"], "max_steps must be at least 1"),
    "no epochs": (["--cfg-options", "epochs=0"], "epochs must be more than 0"),
    "precision": (["--cfg-options", "precision=bf61"], "did you mean 'bf16'"),
    "strategy without ranks": (["--cfg-options", "strategy=zero2"], "several processes"),
    "schedule": (["--cfg-options", "schedule.type=cosin"], "did you mean 'cosine'"),
    "device": (["--cfg-options", "device=foo"], "device 'foo' is not known"),
    "gpu": (["--cfg-options", "device=cuda:99"], "cuda:99"),
    "tracker": (["--cfg-options", "log.to=[tensorbord]"], "did you mean 'tensorboard'"),
    "optimizer": (["--cfg-options", "optimizer.type=AdmW"], "did you mean 'Adam"),
    "optimizer argument": (["--cfg-options", "optimizer.weight_deca=1"], "did you mean 'weight_decay'"),
    "optimizer value": (["--cfg-options", "optimizer.lr=-1"], "optimizer: AdamW"),
    "task": (["--cfg-options", "task.type=TinyTaks"], "did you mean 'TinyTask'"),
    "task argument": (["--cfg-options", "task.widht=3"], "did you mean 'width'"),
    "task value": (["--cfg-options", "task.width=wide"], "task: TinyTask cannot be built"),
    "dataset": (["--cfg-options", "train_data=dict(type='TinyPoint')"], "did you mean 'TinyPoints'"),
    "no data": (["--cfg-options", "train_data=dict(type='TinyPoints',size=0)"], "at least one sample"),
    "validation data": (["--cfg-options", "val_data=dict(type='TinyMissing')"], "val_data: data/tiny has no split"),
    "no training data": (["--cfg-options", "train_data=dict(_delete_=True)"], "no train_data"),
    "collator": (["--cfg-options", "collate.type=TinyCollatr"], "did you mean 'TinyCollator'"),
    "hook": (["--cfg-options", "hooks=[dict(type='StopAtt',step=1)]"], "did you mean 'StopAt'"),
    "hook for another task": (["--cfg-options", "hooks=[dict(type='RoutingHook')]"], "task_summary"),
    "recomputation": (["--cfg-options", "gradient_checkpointing=True"], "gradient_checkpointing=True, but"),
    "start from nowhere": (["--cfg-options", "load_from=nowhere"], "nowhere"),
    "resume from nowhere": (["--resume", "nowhere"], "nowhere"),
    "all samples broken": (["--cfg-options", "train_data=dict(type='TinyPoints',size=2,broken=[0,1])"], "are broken"),
    "too many broken": (
        ["--cfg-options", "train_data=dict(type='TinyPoints',size=4,broken=[0])", "guards.max_broken=0"],
        "more than max_broken=0",
    ),
    "no finite loss": (
        ["--cfg-options", "train_data=dict(type='TinyPoints',size=4,nan=[0,1,2,3])", "guards.max_bad_steps=1"],
        "without a finite loss",
    ),
}  # fmt: skip
TEST = {
    "checkpoint": (["--checkpoint", "nowhere"], "nowhere does not exist"),
    "no test data": (["--cfg-options", "test_data=None"], "no test_data"),
    "device": (["--cfg-options", "device=foo"], "device 'foo' is not known"),
    "a sample that cannot be read": (
        ["--cfg-options", "test_data=dict(type='TinyPoints',size=3,broken=[1])"], r"TinyPoints\[1\] cannot be read"
    ),
}  # fmt: skip


def one_line(capfd, code, message):
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 1
    assert len(errors) == 1 and not any("Traceback" in line or line.startswith("  File") for line in lines), lines
    assert re.search(message, errors[0]), errors[0]


@pytest.mark.parametrize("name", TRAIN)
def test_training(tiny, run, tmp_path, capfd, name):
    arguments, message = TRAIN[name]
    work = ["--work-dir", str(tmp_path / "run")]
    capfd.readouterr()
    one_line(capfd, main(["train", str(run / "config.py"), *work, *arguments]), message)


@pytest.mark.parametrize("name", TEST)
def test_testing(tiny, run, tmp_path, capfd, name):
    arguments, message = TEST[name]
    capfd.readouterr()
    one_line(capfd, main(["test", str(run / "config.py"), "--work-dir", str(tmp_path / "t"), *arguments]), message)


def test_files_that_are_not_there(run, tmp_path, capfd):
    (tmp_path / "broken.py").write_text("task = dict(\n")
    (tmp_path / "base.py").write_text("_base_ = 'none.py'\n")
    (tmp_path / "there").mkdir()
    config, weights = str(run / "config.py"), str(run / "run")
    for arguments, message in [
        (["train", "nowhere.py"], "nowhere.py does not exist"),
        (["train", str(tmp_path / "broken.py")], "not a python file"),
        (["train", str(tmp_path / "base.py")], "_base_ names"),
        (["export", config, "nowhere", str(tmp_path / "out")], "nowhere does not exist"),
        (["export", config, weights, str(tmp_path / "there")], "is there already"),
        (["export", config, weights, str(tmp_path / "out")], "TinyTask has no model to export"),
    ]:
        capfd.readouterr()
        one_line(capfd, main(arguments), message)
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tiny, run, tmp_path, capfd, monkeypatch):
    import os

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    one_line(capfd, main(["train", str(run / "config.py"), "--work-dir", str(tmp_path / "run")]), "No space left")


def test_a_mistake_of_the_package_is_one_line_too_and_its_traceback_is_kept(tiny, run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tiny.TASKS.get("TinyTask"), "forward", lambda self, batch: {}["loss"])
    code = main(["train", str(run / "config.py"), "--work-dir", str(tmp_path / "run")])
    one_line(capfd, code, r"KeyError: 'loss' \(traceback: .*error.txt\)")
    assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()


def test_the_end_says_where_the_model_is_and_what_comes_next(run, tmp_path, capfd):
    assert main(["train", str(run / "config.py"), "--work-dir", str(tmp_path / "run")]) == 0
    said = capfd.readouterr().out
    assert "done after 2 steps; the model is in" in said and "step_00000002" in said
    for verb in ("unimed test", "unimed export", "unimed train"):
        assert verb in said
    assert " exports/run\n" in said  # not the folder of models to start from, which may hold this one's start
    assert "Hooks will be executed" not in said and sys.modules["unimed.engine.noise"]

"""Each option of a config does what its name says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file

from unimed.data.mixture import DataError
from unimed.engine import train
from unimed.engine.checkpoint import CheckpointError
from unimed.engine.stream import Stream

ROOT = Path(__file__).parent.parent.parent


def table(folder, step, name="model"):
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def losses(folder):
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def every_step(tiny, **changes):
    return tiny.config(max_steps=4, validate_interval=0, checkpoint=dict(interval=1, keep=0), **changes)


def test_average_follows_the_weights(tiny, tmp_path):
    train(every_step(tiny, ema=0.75), tmp_path)
    for step in (2, 3, 4):
        before, weights, now = table(tmp_path, step - 1, "ema"), table(tmp_path, step), table(tmp_path, step, "ema")
        for name, value in now.items():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * weights[name])
    assert not any("frozen" in name for name in now)


def test_clip_bounds_the_step(tiny, tmp_path):
    options = dict(optimizer=dict(type="SGD", lr=1.0), schedule=dict(type="constant"))
    train(every_step(tiny, clip=0.25, **options), tmp_path)
    for step in (2, 3, 4):
        before, now = table(tmp_path, step - 1), table(tmp_path, step)
        moved = torch.cat([(now[name] - before[name]).flatten() for name in now]).norm().item()
        assert moved == pytest.approx(0.25, rel=1e-4)
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert all(record["grad_norm"] > 0.25 for record in records)


def test_compiled_task_trains_like_the_plain_one(tiny, tmp_path):
    options = dict(task=dict(type="TinyTask", dropout=0.0), max_steps=4, validate_interval=0)
    train(tiny.config(**options), tmp_path / "plain")
    train(tiny.config(**options, compile="eager"), tmp_path / "compiled")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_resumes_exactly(tiny, tmp_path, precision):
    settings = tiny.config(max_steps=10, validate_interval=0, precision=precision)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "cut", cfg_options={"hooks": [dict(type="StopAt", step=6)]})
    train(settings, tmp_path / "cut", resume="auto")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    state = json.loads((tmp_path / "whole/checkpoints/step_00000010/state.json").read_text())
    assert bool(state["scaler"]) == (precision == "fp16")
    first, second = table(tmp_path / "whole", 10), table(tmp_path / "cut", 10)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_saving_in_the_background_changes_nothing(tiny, tmp_path):
    train(every_step(tiny), tmp_path / "plain")
    settings = every_step(tiny)
    settings["checkpoint"]["background"] = True
    train(settings, tmp_path / "background")
    for step in (1, 2, 3, 4):
        for name in ("model", "optimizer"):
            first, second = (table(tmp_path / kind, step, name) for kind in ("plain", "background"))
            assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_last(tiny, tmp_path, monkeypatch):
    settings = tiny.config(max_steps=12, validate_interval=0)
    train(settings, tmp_path, cfg_options={"max_steps": 6})

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", full)
        with pytest.raises(CheckpointError, match="step 10 could not be written.*No space left"):
            train(settings, tmp_path, resume="auto")
    result = train(settings, tmp_path, resume="auto")
    assert result["step"] == 12 and len(losses(tmp_path)) == 12


@pytest.mark.slow
def test_preempted_run_exits_with_75_and_goes_on(tiny, tmp_path):
    settings = tiny.config(max_steps=400, validate_interval=0, checkpoint=dict(interval=100))
    settings |= dict(train_data=dict(type="TinyPoints", sleep_s=0.01), custom_imports=dict(imports=["tiny"]))
    config = tmp_path / "config.py"
    config.write_text(Config(settings).pretty_text)
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "tools/train.py", config, "--work-dir", run, "--resume", "auto"]
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    said = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process, lines = subprocess.Popen(command, env=environment, **said), []
    for line in process.stdout:
        lines.append(line)
        if "step 3/400" in line:
            process.send_signal(signal.SIGTERM)
    rest = "".join(lines)
    assert process.wait(timeout=1800) == 75, rest[-2000:]
    assert "stopped by SIGTERM at step" in rest and "--resume auto" in rest
    step = int(next((run / "checkpoints").glob("step_*")).name[5:])
    assert 3 <= step < 400 and len(losses(run)) == step


def test_bar_on_a_terminal(tiny, tmp_path, monkeypatch):
    class Terminal(list):
        def isatty(self):
            return True

        def flush(self):
            pass

        write = list.append

    from unimed.engine import report

    terminal = Terminal()
    monkeypatch.setattr(report.sys, "stderr", terminal)
    train(tiny.config(max_steps=30, validate_interval=0, log=dict(interval=10, curves=False)), tmp_path)
    assert any(text.startswith("\r[") and "/30  loss" in text and "ETA 0:00:" in text for text in terminal)
    assert terminal[-1].startswith("\r\x1b")


def test_line_tells_speed_memory_and_what_is_left(tiny, tmp_path):
    train(tiny.config(max_steps=4, validate_interval=0, log=dict(interval=2, curves=False)), tmp_path)
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert all(word in log for word in ("samples/s", "tokens/s", "data wait", "GB", "ETA 0:00:0", "loss_fit"))
    record = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert record["samples_per_s"] > 0 and record["tokens_per_s"] == pytest.approx(4 * record["samples_per_s"])
    assert 0 <= record["data_wait"] <= 1 and record["memory_gb"] > 0.1


def test_constant_loss_and_no_grounding_are_told(tiny, tmp_path):
    settings = tiny.config(
        task=dict(type="TinyTask", dropout=0.0, rate=0.0),
        train_data=dict(type="TinyPoints", size=4, augment=False),
        optimizer=dict(type="SGD", lr=0.0),
        max_steps=6,
        validate_interval=6,
        guards=dict(constant_loss_steps=3),
    )
    train(settings, tmp_path)
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert "nothing is trained" in log and "grounding_rate is 0: the model answers without ever pointing" in log


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_trackers_by_a_word(tiny, tmp_path, monkeypatch, tracker):
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(tiny.config(max_steps=2, validate_interval=0, log=dict(interval=1, to=[tracker])), tmp_path / "run")
    written = list(tmp_path.rglob("events.out*")) + list(tmp_path.rglob("*.wandb")) + list(tmp_path.rglob("*.db"))
    assert written


def dying(tmp_path, times):
    return dict(type="TinyDying", folder=str(tmp_path), times=times)


@pytest.mark.slow  # DataLoader notices a death within five seconds
def test_a_worker_that_dies_is_named_and_started_anew(tiny, tmp_path, capfd):
    tmp_path.joinpath("plain").mkdir()
    settings = tiny.config(train_data=dying(tmp_path, 1), num_workers=1, max_steps=6, validate_interval=0)
    train(settings, tmp_path / "run")
    assert "a data worker died and is started anew; samples in flight: ['TinyDying[" in capfd.readouterr().out
    (tmp_path / "deaths").write_text("9" * 9)
    train(settings, tmp_path / "plain")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_run(tiny, tmp_path):
    data = dying(tmp_path, 99)
    stream = Stream(data, list, batch_size=2, rank=0, world_size=1, seed=0, num_workers=1, restarts=1)
    with pytest.raises(DataError, match="data workers keep dying; samples in flight:.*TinyDying"):
        for _ in range(9):
            next(stream)
    assert (tmp_path / "deaths").read_text() == "xx"

"""Runs that are asked to stop, that hang, and that want the folder of another run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unimed.commands.training import _ranked
from unimed.data.mixture import DataError
from unimed.engine import train
from unimed.engine.shutdown import SIGNALS, GracefulShutdown, StopRequested
from unimed.engine.stream import Stream
from unimed.files import FolderInUseError, FolderLock

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def usual_signals():
    """Tests in the background of a shell, or under nohup, inherit that some are ignored, which a run respects."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(tiny, tmp_path, number):
    before = [signal.getsignal(n) for n in SIGNALS]
    settings = tiny.config(max_steps=9, validate_interval=0, checkpoint=dict(interval=0, keep=2))
    first = train(settings, tmp_path / "cut", cfg_options={"hooks": [dict(type="StopAt", step=4, number=number)]})
    assert first["stopped"] == number.name and 4 <= first["step"] <= 5
    assert Path(first["checkpoint"]).is_dir()
    assert [signal.getsignal(n) for n in SIGNALS] == before
    whole = train(settings, tmp_path / "whole")
    assert train(settings, tmp_path / "cut", resume="auto")["loss"] == whole["loss"]


def test_before_the_first_step_a_signal_ends_the_run_at_once(tiny, tmp_path):
    with pytest.raises(StopRequested, match="SIGUSR1"):
        train(tiny.config(train_data=dict(type="TinySignal", number=signal.SIGUSR1)), tmp_path)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / ".lock").exists()


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(StopRequested, match="SIGINT") as stop, GracefulShutdown() as shutdown:
        shutdown.interruptible = False
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # of the same request, by another road
        assert shutdown.requested == "SIGTERM"
        shutdown._since -= 2
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.again


def test_a_run_that_is_stopped_twice_says_so_and_ends_with_130(capsys):
    def work(_):
        raise StopRequested("SIGINT", again=True)

    assert _ranked(work, None) == 130
    assert re.fullmatch(r"stopped at once by a second Ctrl-C.*--resume auto\n", capsys.readouterr().err)


def test_a_signal_during_validation_does_not_wait_for_its_end(tiny, tmp_path):
    data = dict(type="TinySignal", number=signal.SIGTERM, index=40, size=64)
    settings = tiny.config(val_data=data, validate_interval=3, validate_batches=99, max_steps=9)
    result = train(settings, tmp_path)
    assert (result["step"], result["stopped"]) == (3, "SIGTERM") and Path(result["checkpoint"]).is_dir()
    assert all(json.loads(line)["kind"] == "train" for line in (tmp_path / "train.jsonl").read_text().splitlines())


def test_two_runs_never_share_a_folder(tiny, tmp_path):
    settings = tiny.config(max_steps=2, validate_interval=0)
    with FolderLock(tmp_path, "training"), pytest.raises(FolderInUseError, match="is in use: training by process"):
        train(settings, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    # A run that was killed has left its lock behind.
    owner = subprocess.Popen(
        [sys.executable, "-c", f"import os; from unimed.files import FolderLock; "
         f"FolderLock({str(tmp_path)!r}, 'training').acquire(); os.kill(os.getpid(), 9)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    owner.wait()
    assert (tmp_path / ".lock").exists()
    assert train(settings, tmp_path)["step"] == 2


def test_a_worker_that_hangs_is_started_anew_and_then_named(tiny, tmp_path, capfd):
    data = dict(type="TinyHanging", folder=str(tmp_path), times=2)
    stream = Stream(
        data, list, batch_size=2, rank=0, world_size=1, seed=0, num_workers=1, restarts=1, timeout_s=0.5
    )  # fmt: skip
    with pytest.raises(DataError, match=r"time-out: a data worker gave nothing for 0.5 s again; .*TinyHanging\["):
        for _ in range(9):
            next(stream)
    assert "gave nothing for 0.5 s and is started anew; samples in flight: ['TinyHanging[" in capfd.readouterr().out
    stream.close()
    assert (tmp_path / "hangs").read_text() == "xx"


HANGING = """
import sys, time
from pathlib import Path
from unimed.engine.watchdog import Watchdog
with Watchdog(4, Path(sys.argv[1]), rank=1) as watchdog:
    for step in range(6):  # longer together than the limit, and each far below it on a busy machine, too
        watchdog.beat(f"training step {step}")
        time.sleep(1)
    watchdog.beat("reading the data of step 5", details=lambda: "samples in flight: ['A[3]']")
    time.sleep(3600)
"""


def test_what_hangs_is_ended_and_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HANGING, tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 1
    line = (
        "error: time-out: nothing has happened for 4 s while reading the data of step 5 (samples in flight: ['A[3]'])"
    )
    assert done.stderr.startswith(line) and len(done.stderr.splitlines()) == 1
    assert "File" in (tmp_path / "hang_rank1.txt").read_text()

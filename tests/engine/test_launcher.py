"""Ranks are started, asked to stop, reported and ended together. The ranks here are small scripts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unimed.engine.launcher import main

ROOT = Path(__file__).parent.parent.parent
#: What every rank runs: it notes that it is there, then does what its number and the folder say.
RANK = """
import os, sys, time
from pathlib import Path
from unimed.engine import errors
from unimed.engine.shutdown import PREEMPTED, GracefulShutdown
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
with GracefulShutdown() as shutdown:
    shutdown.interruptible = False
    (folder / f"up_{rank}").write_text(os.environ["MASTER_PORT"] + " " + os.environ["WORLD_SIZE"])
    %s
    for _ in range(2000):
        time.sleep(0.01)
        if shutdown.requested:
            (folder / f"saved_{rank}").write_text(shutdown.requested)
            sys.exit(PREEMPTED)
"""


@pytest.fixture
def launch(tmp_path):
    started = []

    def start(body="pass", ranks=2, options=(), wait_for=2):
        script = tmp_path / "rank.py"
        script.write_text(RANK % body)
        command = [
            sys.executable,
            "-m",
            "unimed.engine.launcher",
            "--processes",
            str(ranks),
            *options,
            script,
            tmp_path,
        ]
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A test run in the background of a shell has these ignored, which processes inherit.
            preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP, signal.SIGINT)],
        )
        started.append(process)
        until(lambda: len(list(tmp_path.glob("up_*"))) >= wait_for)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def ended(process):
    _, errors = process.communicate(timeout=1800)
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_signals_reach_every_rank_and_the_code_comes_back(launch, tmp_path, name):
    process = launch()
    process.send_signal(getattr(signal, name))
    assert ended(process) == (75, [])
    assert [(tmp_path / f"saved_{rank}").read_text() for rank in (0, 1)] == [name, name]
    ports = {(tmp_path / f"up_{rank}").read_text() for rank in (0, 1)}
    assert len(ports) == 1 and ports.pop().endswith(" 2")


def test_ignored_signals_stay_ignored(tmp_path):
    """As under nohup."""
    script = tmp_path / "rank.py"
    script.write_text(RANK % "time.sleep(0.5); sys.exit(0)")
    command = [sys.executable, "-m", "unimed.engine.launcher", "--processes", "1", str(script), str(tmp_path)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    until(lambda: (tmp_path / "up_0").exists())
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=1800) == 0


@pytest.mark.parametrize(
    ("body", "code", "lines"),
    [
        # The same mistake in every rank is one line.
        ("sys.exit(errors.report(ValueError('lr must be a number')))", 1, ["error: lr must be a number"]),
        # One rank fails: it is named, and that others lost it is not told.
        (
            "sys.exit(errors.report(OSError('no space') if rank else RuntimeError('Connection closed by peer [::1]')))",
            1,
            ["error: rank 1: no space"],
        ),
        ("sys.exit(errors.report(ValueError(f'bad {rank}')))", 1, ["error: bad 0", "error: rank 1: bad 1"]),
        ("rank and os.kill(os.getpid(), 9)", 1, ["error: rank 1 was ended by SIGKILL (out of memory?)"]),
        ("rank and sys.exit(3)", 3, ["error: rank 1 ended with code 3"]),
        ("sys.exit(0)", 0, []),
        ("sys.exit(PREEMPTED)", 75, []),
    ],
)
def test_ends_of_ranks(launch, body, code, lines):
    process = launch(body, options=["--grace", "0.5"])
    found, said = ended(process)
    assert found == code
    assert sorted(said) == sorted(lines)


def test_a_rank_that_does_not_stop_is_named_and_killed(launch, tmp_path):
    body = "signal = __import__('signal'); rank and signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    process = launch(body, options=["--stop-timeout", "1"])
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 1 and said == ["error: time-out: rank 1 did not end in time and was killed 1 s after SIGTERM"]
    assert (tmp_path / "saved_0").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells ranks of their launcher's end")
def test_ranks_save_when_the_launcher_is_killed(launch, tmp_path):
    process = launch()
    process.kill()
    until(lambda: (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists())


@pytest.mark.parametrize("options, told", [
    (["--nodes", "2"], "--master-port"),
    (["--nodes", "2", "--node-rank", "2", "--master-port", "29500"], "NODE_RANK) is 0 to 1 for 2 machines, got 2"),
    (["--nodes", "2", "--node-rank", "-1", "--master-port", "29500"], "NODE_RANK) is 0 to 1"),
    (["--restarts", "-1"], "--restarts at least 0"),
    (["--nodes", "0"], "NNODES) is at least 1"),
    (["--master-port", "70000"], "PORT) is 1 to 65535, got 70000"),
])  # fmt: skip
def test_what_cannot_be_started_is_told(options, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--processes", "1", *options, "x.py"])
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize("message, starts", [("'unknown key'", 2), ("str(time.time())", 4)])
def test_ranks_that_fail_twice_with_the_same_error_are_not_started_again(tmp_path, capfd, message, starts):
    script = tmp_path / "rank.py"
    script.write_text(
        "import json, os, pathlib, sys, time\n"
        f"told = {{'message': {message}, 'other_rank': False, 'time': 0}}\n"
        "pathlib.Path(os.environ['UNIMED_ERROR_FILE']).write_text(json.dumps(told))\n"
        "with open(sys.argv[1], 'a') as stream:\n"
        "    stream.write('x')\n"
        "sys.exit(1)\n"
    )
    assert main(["--processes", "1", "--restarts", "3", str(script), str(tmp_path / "starts")]) == 1
    assert (tmp_path / "starts").read_text() == "x" * starts
    assert ("the same error again" in capfd.readouterr().err) == (starts == 2)

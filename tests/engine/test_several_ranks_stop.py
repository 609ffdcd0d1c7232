"""Real runs of two ranks, on one machine and on two: what hangs is named and ended, signals reach every rank."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from unimed.engine import checkpoint

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow
#: Seconds without a sign of life: a step of these runs takes milliseconds.
LIMIT = 8


@pytest.fixture
def runs(tiny, tmp_path):
    """Starts processes in the folder of the test, all of which are ended with it."""
    started = []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "engine")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }

    def start(name, command, **variables):
        with open(tmp_path / f"{name}.txt", "w") as out:
            process = subprocess.Popen(
                [str(word) for word in command], env=environment | variables, stdout=out, stderr=out,
                stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP, signal.SIGINT)],
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()  # the kernel tells its ranks
        process.wait()


def config_file(tiny, folder, **changes):
    """A run that ends on request alone, saved then alone."""
    settings = tiny.config(
        max_steps=10**5, validate_interval=0, checkpoint=dict(interval=10**5, keep=1),
        custom_imports=dict(imports=["tiny"]),
    )  # fmt: skip
    settings |= dict(train_data=dict(type="TinyPoints", sleep_s=0.01), num_workers=0) | changes
    (folder / "config.py").write_text(Config(settings).pretty_text)
    return folder / "config.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dist(config, run, count, *options):
    return ["bash", ROOT / "tools" / "dist.sh", "train", config, count, "--work-dir", run, *options]


def machines(runs, config, run, *options):
    """Two agents on this machine, as two machines would run them."""
    port = str(free_port())
    return [
        runs(f"out{number}", dist(config, run, 1, *options), NNODES="2", NODE_RANK=str(number), PORT=port,
             MASTER_ADDR="127.0.0.1")
        for number in (0, 1)
    ]  # fmt: skip


def until_step(path, step, processes):
    end = time.monotonic() + 1800
    while f"step {step}/" not in path.read_text():
        assert all(p.poll() is None for p in processes) and time.monotonic() < end, path.read_text()[-2000:]
        time.sleep(0.05)


def errors_in(path):
    said = path.read_text()
    assert "Traceback" not in said, said[-3000:]
    return [line for line in said.splitlines() if line.startswith("error: ")]


def left_behind(folder):
    """Processes whose command line names the folder, once they have had a moment to end."""
    for _ in range(100):
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.1)
    return found


def test_a_rank_that_stands_still_is_named_by_the_others(tiny, runs, tmp_path):
    """It can say nothing itself: the process is stopped, as one on a dead file system is."""
    data = dict(type="TinyStuck", rank=1, how="stop")
    config = config_file(tiny, tmp_path, train_data=data, guards=dict(hang_timeout_s=LIMIT))
    assert runs("out", dist(config, tmp_path / "run", 2)).wait(timeout=1800) == 1
    (line,) = errors_in(tmp_path / "out.txt")
    assert line.startswith(f"error: time-out: nothing has happened for {LIMIT} s while training step "), line
    assert "rank 1 gave no sign of life and was killed" in line, line
    assert left_behind(tmp_path / "run") == []


def test_a_data_worker_that_hangs_is_named(tiny, runs, tmp_path):
    (tmp_path / "hangs").write_text("")
    config = config_file(
        tiny, tmp_path, train_data=dict(type="TinyHanging", folder=str(tmp_path), times=99), num_workers=1,
        guards=dict(worker_timeout_s=3, max_worker_restarts=1),
    )  # fmt: skip
    assert runs("out", dist(config, tmp_path / "run", 1)).wait(timeout=1800) == 1
    (line,) = errors_in(tmp_path / "out.txt")
    assert line.startswith("error: time-out: a data worker gave nothing for 3 s again; samples in flight: ["), line
    assert "TinyHanging[3]" in line
    assert left_behind(tmp_path / "run") == []


def test_two_machines_train_one_run_and_stop_together(tiny, runs, tmp_path):
    """The signal reaches one of them only; both save and end with 75."""
    run = tmp_path / "run"
    agents = machines(runs, config_file(tiny, tmp_path), run)
    until_step(tmp_path / "out0.txt", 3, agents)
    agents[1].send_signal(signal.SIGUSR1)
    assert [agent.wait(timeout=1800) for agent in agents] == [75, 75]
    step = re.search(r"stopped by .* at step (\d+), saved", (tmp_path / "out0.txt").read_text())
    found = checkpoint.find(run / "checkpoints")
    assert step and int(found.name[5:]) == int(step[1])
    state = checkpoint.load(found).state
    assert state["world_size"] == 2 and left_behind(run) == []
    assert not errors_in(tmp_path / "out0.txt") and not errors_in(tmp_path / "out1.txt")


def test_a_rank_that_hangs_on_another_machine_ends_both(tiny, runs, tmp_path):
    data = dict(type="TinyStuck", rank=1)
    config = config_file(tiny, tmp_path, train_data=data, guards=dict(hang_timeout_s=LIMIT))
    agents = machines(runs, config, tmp_path / "run")
    assert [agent.wait(timeout=1800) for agent in agents] == [1, 1]
    (line,) = errors_in(tmp_path / "out1.txt")
    assert f"time-out: nothing has happened for {LIMIT} s while reading the data of step " in line, line
    assert "TinyStuck[" in line and "guards.hang_timeout_s" in line
    assert "__getitem__" in (tmp_path / "run" / "hang_rank1.txt").read_text()
    assert len(errors_in(tmp_path / "out0.txt")) == 1
    assert left_behind(tmp_path / "run") == []


def test_two_agents_of_torchrun(tiny, runs, tmp_path):
    """Whoever has torchrun in a script gets the same; it passes SIGTERM on."""
    run, port = tmp_path / "run", free_port()
    agents = [
        runs(
            f"out{number}",
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node-rank", number, "--nproc-per-node", 1,
             "--master-addr", "127.0.0.1", "--master-port", port, ROOT / "tools" / "train.py",
             config_file(tiny, tmp_path), "--work-dir", run],
        )
        for number in (0, 1)
    ]  # fmt: skip
    until_step(tmp_path / "out0.txt", 3, agents)
    agents[0].send_signal(signal.SIGTERM)
    for agent in agents:
        agent.wait(timeout=1800)
    step = re.search(r"stopped by SIGTERM at step (\d+), saved", (tmp_path / "out0.txt").read_text())
    assert step and int(checkpoint.find(run / "checkpoints").name[5:]) == int(step[1])
    assert left_behind(run) == []


def test_a_machine_that_dies_and_returns_goes_on_from_the_last_checkpoint(tiny, runs, tmp_path):
    """The ranks that are left fail, are started again, and wait for the machine that is gone."""
    run, port = tmp_path / "run", str(free_port())
    config = config_file(
        tiny, tmp_path, max_steps=60, checkpoint=dict(interval=10, keep=2),
        train_data=dict(type="TinyPoints", sleep_s=0.03),
    )  # fmt: skip

    def machine(name, number):
        return runs(name, dist(config, run, 1, "--resume", "auto"), NNODES="2", NODE_RANK=str(number), PORT=port,
                    MASTER_ADDR="127.0.0.1", RESTARTS="2")  # fmt: skip

    agents = [machine("first", 0), machine("second", 1)]
    end = time.monotonic() + 600
    while not (run / "checkpoints" / "step_00000020").is_dir():
        assert all(a.poll() is None for a in agents) and time.monotonic() < end, (tmp_path / "first.txt").read_text()
        time.sleep(0.05)
    # It loses its power: the rank and its launcher are gone together.
    launcher = agents[1].pid
    rank = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for process in (*map(int, rank), launcher):
        os.kill(process, signal.SIGKILL)
    assert rank and agents[1].wait() == -signal.SIGKILL
    agents[1] = machine("second-again", 1)
    assert [a.wait(timeout=600) for a in agents] == [0, 0], (tmp_path / "first.txt").read_text()[-3000:]
    said = (tmp_path / "first.txt").read_text()
    assert said.count("the ranks are started again") == 1
    assert int(re.search(r"resumed \S+ at step (\d+)", said)[1]) >= 20
    assert checkpoint.find(run / "checkpoints").name == "step_00000060"
    assert checkpoint.load(run / "checkpoints" / "step_00000060").state["world_size"] == 2
    assert left_behind(run) == []

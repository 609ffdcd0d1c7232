"""tools/slurm.sh against stand-ins of srun and scontrol that write down what they are given; ranks are a few lines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Runs its command once per node, as srun does, and ends with the largest exit code.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
[ "$1" = --kill-on-bad-exit=1 ] && shift
set -m # as a program of its own it ignores no signal
children=()
for node in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_NODEID=$node "$@" & children+=($!)
done
for name in TERM USR1 HUP INT; do trap "kill -s $name ${children[*]}" $name; done
code=0
for child in "${children[@]}"; do
    while kill -0 "$child" 2>/dev/null; do own=0; wait "$child" || own=$?; done
    [ "$own" -gt "$code" ] && code=$own
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
[ "$1" = requeue ] || printf 'first\\nsecond\\n'
"""
#: What tools/dist.sh is here: it notes its surroundings, and saves when it is asked to stop.
DIST = """#!/usr/bin/env bash
echo "dist $NODE_RANK $NNODES $MASTER_ADDR $PORT $*" >> "$CALLS"
trap 'exit 75' TERM USR1 HUP INT
touch "$CALLS.up$NODE_RANK"
for _ in $(seq 600); do sleep 0.05; [ -f "$CALLS.end" ] && exit "$(cat "$CALLS.end")"; done
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job of two machines; gives the process and the lines of calls so far."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tools").mkdir()
    for path, text in (("bin/srun", SRUN), ("bin/scontrol", SCONTROL), ("tools/dist.sh", DIST)):
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    environment = {k: v for k, v in os.environ.items() if k not in ("PORT", "MASTER_ADDR", "NNODES", "NODE_RANK")}
    environment |= {
        "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]), "CALLS": str(calls),
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_NNODES": "2", "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "first,second",
    }  # fmt: skip
    started = []

    def start(*words):
        process = subprocess.Popen(
            ["bash", str(ROOT / "tools" / "slurm.sh"), *words], env=environment, start_new_session=True,
            preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP, signal.SIGINT)],
        )  # fmt: skip
        started.append(process)
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("calls.up*"))) < 2:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        return process, lambda: calls.read_text().splitlines()

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_what_is_set_on_every_machine(job, tmp_path):
    process, calls = job("train", "config.py", "8", "--work-dir", "run")
    (tmp_path / "calls.end").write_text("0")
    assert process.wait(timeout=60) == 0
    dist = sorted(line for line in calls() if line.startswith("dist"))
    told = "first 23456 train config.py 8 --work-dir run --resume auto"
    assert dist == [f"dist 0 2 {told}", f"dist 1 2 {told}"]
    assert sum(line.startswith("srun --kill-on-bad-exit=1 bash -c") for line in calls()) == 1
    assert not any("requeue" in line for line in calls())


@pytest.mark.parametrize(("name", "requeued"), [("SIGUSR1", True), ("SIGTERM", False), ("SIGINT", False)])
def test_a_job_that_saved_is_put_back_unless_it_was_canceled(job, name, requeued):
    process, calls = job("train", "config.py", "8")
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=60) == 75
    assert ("scontrol requeue 123456" in calls()) == requeued


def test_the_signal_of_slurm_goes_to_the_steps_alone(job, tmp_path):
    """`--signal=USR1@300` without B: reaches the steps; the script sees the exit code only."""
    process, calls = job("train", "config.py", "8")
    (tmp_path / "calls.end").write_text("75")
    assert process.wait(timeout=60) == 75 and "scontrol requeue 123456" in calls()


@pytest.mark.parametrize(("code", "verb"), [("1", "train"), ("3", "test")])
def test_a_job_that_failed_is_not_put_back(job, tmp_path, code, verb):
    process, calls = job(verb, "config.py", "8")
    (tmp_path / "calls.end").write_text(code)
    assert process.wait(timeout=60) == int(code)
    assert not any("requeue" in line for line in calls())
    assert any("--resume auto" in line for line in calls()) == (verb == "train")


def test_directives_are_those_that_sbatch_reads():
    lines = (ROOT / "tools" / "slurm.sh").read_text().splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {"--signal=USR1@300", "--requeue", "--ntasks-per-node=1", "--open-mode=append"} <= set(directives)
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert first_command > max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))


def test_machines_may_differ(tmp_path):
    """Three ranks in all: two on the first machine, one on the second."""
    script = tmp_path / "rank.py"
    names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    script.write_text(f"""import os, sys
with open(sys.argv[1] + os.environ["RANK"], "w") as out:
    out.write(" ".join(os.environ[name] for name in {names}))
""")
    from unimed.engine.launcher import Ranks, main

    for node in (0, 1):
        words = ["--processes", "2,1", "--nodes", "2", "--node-rank", str(node), "--master-port", "29999"]
        assert main([*words, str(script), str(tmp_path / "rank")]) == 0
    found = [(tmp_path / f"rank{rank}").read_text() for rank in range(3)]
    assert found == ["3 0 2", "3 1 2", "3 0 1"]
    with pytest.raises(ValueError, match="2 numbers of processes for 3 machines"):
        Ranks([sys.executable], [2, 1], nodes=3)
    for words in (["--processes", "2,1"], ["--processes", "0"]):
        with pytest.raises(SystemExit):
            main([*words, "x.py"])


def test_outside_of_a_job_it_says_how_to_start_one():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k != "MASTER_ADDR"}
    done = subprocess.run(
        ["bash", ROOT / "tools" / "slurm.sh", "train", "x.py", "8"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "start it with: sbatch" in done.stderr and "train x.py 8" in done.stderr

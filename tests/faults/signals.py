"""Stop real runs by every signal and count those that saved: `python tests/faults/signals.py FOLDER [HOW ...]`.

HOW is one of: single (one process), ranks (two, by tools/dist.sh), slurm (two, by tools/slurm.sh with a stand-in for
srun, the signal sent to every process of the job as Slurm does). Each run has a data worker, is stopped after its first
steps, must exit with 75, leave a whole checkpoint of the step it names and no process behind, and print no traceback.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "engine")]

import tiny  # noqa: E402

from unimed.engine import checkpoint  # noqa: E402

NAMES = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
MODES = ("single", "ranks", "slurm")


def command(how, config, run):
    script, count = ("slurm.sh" if how == "slurm" else "dist.sh"), ("1" if how == "single" else "2")
    resume = [] if how == "slurm" else ["--resume", "auto"]
    return ["bash", str(ROOT / "tools" / script), "train", str(config), count, "--work-dir", str(run), *resume]


def stand_ins(folder):
    """`srun` that runs its command here, and `scontrol` that names this machine."""
    folder.mkdir(exist_ok=True)
    for name, text in (("srun", 'shift\nexec env SLURM_NODEID=0 "$@"'), ("scontrol", "echo 127.0.0.1")):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def processes_of(run):
    """Ids of all processes whose command line names the run folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(run).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def stop_one(folder, how, name):
    """What went wrong, "" if nothing did."""
    folder.mkdir(parents=True)
    data = dict(type="TinyPoints", sleep_s=0.01)
    settings = tiny.config(max_steps=10**5, validate_interval=0, checkpoint=dict(interval=10**5, keep=1))
    settings |= dict(train_data=data, num_workers=1, custom_imports=dict(imports=["tiny"]))
    (folder / "config.py").write_text(Config(settings).pretty_text)
    run, log = folder / "run", folder / "out.txt"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "engine")]),
        "PATH": os.pathsep.join([stand_ins(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": str(os.getpid() % 10000),
        "PYTHON": sys.executable,
    }  # fmt: skip
    with open(log, "w") as out:
        process = subprocess.Popen(
            command(how, folder / "config.py", run), env=environment, stdout=out, stderr=out, start_new_session=True,
            preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP, signal.SIGINT)],
        )  # fmt: skip
    end = time.monotonic() + 1800
    while "step 3/" not in log.read_text():
        if process.poll() is not None or time.monotonic() > end:
            return f"never got under way: {log.read_text()[-500:]}"
        time.sleep(0.1)
    for target in processes_of(run) if how == "slurm" else [process.pid]:
        os.kill(target, getattr(signal, name))
    code, said = process.wait(timeout=1800), log.read_text()
    step = re.search(rf"stopped by {name} at step (\d+), saved", said)
    if code != 75 or not step or "Traceback" in said:
        return f"code {code}: {said[-800:]}"
    found = checkpoint.find(run / "checkpoints")
    if found is None or int(found.name[5:]) != int(step[1]):
        return f"no whole checkpoint of step {step[1]}"
    time.sleep(0.2)
    return f"left behind: {processes_of(run)}" if processes_of(run) else ""


def harness(folder, modes=MODES, names=NAMES):
    """{(how, signal): what went wrong}, empty texts for those that saved."""
    return {(how, name): stop_one(Path(folder) / f"{how}-{name}", how, name) for how in modes for name in names}


if __name__ == "__main__":
    result = harness(sys.argv[1], sys.argv[2:] or MODES)
    for (how, name), problem in result.items():
        print(how, name, problem or "saved", sep="\t")
    print(f"{sum(not problem for problem in result.values())} of {len(result)} saved")

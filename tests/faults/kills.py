"""SIGKILL a run at random moments and count what survives.

    python tests/faults/kills.py FOLDER [KILLS] [plain] [background]

Every life of the run resumes with `auto`, saves every 3 steps and keeps one checkpoint only, the hardest setting. Four
of five lives are ended after their first step, at a random moment of the next fifth of a second or of the next second
and a half; the fifth at any moment from its start. At the end the run is finished without kills, and once more from the
beginning: the weights must be the same.
"""

import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from unimed.engine import checkpoint, train  # noqa: E402
from unimed.engine import training as _training  # noqa: E402, F401  # imported before the forks, for speed

specification = importlib.util.spec_from_file_location("engine_tiny", ROOT / "tests" / "engine" / "tiny.py")
tiny = sys.modules.setdefault("engine_tiny", importlib.util.module_from_spec(specification))
specification.loader.exec_module(tiny)
INTERVAL = 3


def settings(steps, background):
    return tiny.config(
        max_steps=steps,
        schedule=dict(type="constant"),
        validate_interval=0,
        checkpoint=dict(interval=INTERVAL, keep=1, background=background),
        log=dict(interval=1, curves=False),
    )


def live(folder, steps, background):
    """A child process that trains; returns its id."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            try:
                train(settings(steps, background), folder, resume="auto")
            except BaseException:
                os._exit(1)
            os._exit(0)
    return child


def last_logged(folder):
    lines = (folder / "train.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def harness(folder: Path, kills: int, background: bool = False, seed: int = 0) -> dict:
    """Returns {"kills", "loadable", "most_lost" (steps), "during_save", "same_weights", "step"}."""
    chance = random.Random(seed)
    os.waitpid(live(folder / "killed", INTERVAL, background), 0)
    root = folder / "killed" / "checkpoints"
    loadable = during_save = most_lost = 0
    for number in range(kills):
        child = live(folder / "killed", 10**6, background)
        if number % 5:
            before = int(checkpoint.find(root).name[5:])
            deadline = time.monotonic() + 60
            while last_logged(folder / "killed") <= before and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, chance.choice([0.2, 1.5])))
        else:
            time.sleep(chance.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        during_save += any(root.glob(".writing-*"))
        found = checkpoint.find(root)
        if found is not None:
            checkpoint.load(found)
            loadable += 1
            most_lost = max(most_lost, last_logged(folder / "killed") - int(found.name[5:]))
    steps = int(checkpoint.find(root).name[5:]) + 5
    assert os.waitpid(live(folder / "killed", steps, background), 0)[1] == 0
    assert os.waitpid(live(folder / "whole", steps, background), 0)[1] == 0
    first, second = (checkpoint.load_weights(folder / name) for name in ("killed", "whole"))
    same = all(torch.equal(first[name], second[name]) for name in second) and first.keys() == second.keys()
    return {
        "kills": kills,
        "loadable": loadable,
        "most_lost": most_lost,
        "during_save": during_save,
        "same_weights": same,
        "step": steps,
    }


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    for how in sys.argv[3:] or ["plain"]:
        print(how, harness(Path(sys.argv[1]) / how, count, how == "background"), sep="\t")

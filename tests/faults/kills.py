"""SIGKILL a run at random moments, most of them while a checkpoint is written, and count what survives.

    python tests/faults/kills.py FOLDER [KILLS] [plain] [background]

Every life of the run resumes with `auto`, saves every 3 steps and keeps one checkpoint only, the hardest setting. A
fifth of the lives end at any moment from their start. The others end inside a save, however slow the machine is: the
harness watches the folder for a save to begin, stops the process at a random moment of the time that saves have been
seen to take, and kills it if the save is still under way, else lets it go on to the next. What was hit is counted by
what the kill left behind, `.writing-*` or `.replaced-*`. At the end the run is
finished without kills, and once more from the beginning: the weights must be the same.
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
#: Seconds that a life may take to begin a save; far beyond any load.
PATIENCE_S = 120


def settings(steps, background):
    return tiny.config(
        max_steps=steps,
        schedule=dict(type="constant"),
        validate_interval=0,
        val_data=None,
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


def being_written(root):
    """Names of the saves that are under way."""
    try:
        return {entry.name for entry in os.scandir(root) if entry.name.startswith((".writing-", ".replaced-"))}
    except FileNotFoundError:
        return set()


def wait_for_save(root, child, known):
    """Until a save begins that is none of the `known` ones (left by earlier kills); False when the child has ended."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if being_written(root) - known:
            return True
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
    raise TimeoutError(f"no save began within {PATIENCE_S} s")


def duration_of_a_save(root, child, known):
    """Seconds that one whole save takes at the moment, watched from outside."""
    assert wait_for_save(root, child, known), "the run ended before it saved"
    began = time.monotonic()
    while being_written(root) - known:
        pass
    return time.monotonic() - began


def harness(folder: Path, kills: int, background: bool = False, seed: int = 0) -> dict:
    """Returns {"kills", "aimed" (at a save), "during_save" (hit), "loadable", "most_lost" (steps), "same_weights"}."""
    chance = random.Random(seed)
    run = folder / "killed"
    assert os.waitpid(live(run, INTERVAL, background), 0)[1] == 0
    root = run / "checkpoints"
    counts = dict.fromkeys(("aimed", "during_save", "loadable", "most_lost"), 0)
    for number in range(kills):
        known = being_written(root)
        child = live(run, 10**6, background)
        aimed = number % 5 != 4
        counts["aimed"] += aimed
        if aimed:
            # Two saves pass: one to be sure that the run is under way, one to know how long they take right now.
            long = max(duration_of_a_save(root, child, known) for _ in range(2))
            while True:
                assert wait_for_save(root, child, known)
                end = time.monotonic() + chance.uniform(0.0, 0.9) * long
                while time.monotonic() < end:
                    pass
                # Stopped, it can be looked at: where the save is over already, the next one is taken.
                os.kill(child, signal.SIGSTOP)
                os.waitpid(child, os.WUNTRACED)
                if being_written(root) - known:
                    break
                os.kill(child, signal.SIGCONT)
        else:
            time.sleep(chance.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counts["during_save"] += bool(being_written(root) - known)
        found = checkpoint.find(root)
        if found is not None:
            checkpoint.load(found)
            counts["loadable"] += 1
            counts["most_lost"] = max(counts["most_lost"], last_logged(run) - int(found.name[5:]))
    steps = int(checkpoint.find(root).name[5:]) + 5
    assert os.waitpid(live(run, steps, background), 0)[1] == 0
    assert os.waitpid(live(folder / "whole", steps, background), 0)[1] == 0
    first, second = (checkpoint.load_weights(folder / name) for name in ("killed", "whole"))
    same = all(torch.equal(first[name], second[name]) for name in second) and first.keys() == second.keys()
    leftovers = len(being_written(root))
    return {"kills": kills, **counts, "leftovers": leftovers, "same_weights": same, "step": steps}


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    for how in sys.argv[3:] or ["plain"]:
        print(how, harness(Path(sys.argv[1]) / how, count, how == "background"), sep="\t")

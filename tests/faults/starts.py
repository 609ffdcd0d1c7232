"""Open one published folder in several processes at once, over and over: `python tests/faults/starts.py FOLDER [N]`.

At each of N starts (50) the cache is empty and three processes open the folder in the same moment; every other time
the one that converts is killed in the middle. All that were not killed must answer with the same weights, and one whole
conversion must be left. The processes are forked from one that has imported everything, so that they do meet.
"""

import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("", "models/grounded", "models/checkpoints"))]

from published_folders import publish  # noqa: E402

import unimed  # noqa: E402
import unimed.models  # noqa: E402, F401 - before the forks
from unimed.models.grounded import GroundedMLLM  # noqa: E402

PROCESSES = 3


def digest(model) -> bytes:
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.contiguous().view(-1).numpy().tobytes())
    return found.digest()


def opened(folder: Path, gate: int, answer: int, killed: Path | None) -> None:
    """A child: waits for the others, opens the folder and answers; the first one that converts dies of it."""
    if killed is not None:
        save = GroundedMLLM.save_pretrained

        def die_first(*args, **options):
            save(*args, **options)
            try:
                killed.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

        GroundedMLLM.save_pretrained = die_first
    os.read(gate, 1)
    os.write(answer, digest(unimed.load(folder, device="cpu")))


def start(folder: Path, cache: Path, kill: bool) -> str:
    """What went wrong at one start, "" where nothing did."""
    shutil.rmtree(cache, ignore_errors=True)
    killed = folder.parent / "killed"
    killed.unlink(missing_ok=True)
    (gate, opener), children = os.pipe(), {}
    for _ in range(PROCESSES):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(opener)
                opened(folder, gate, writer, killed if kill else None)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        children[child] = reader
    os.close(gate)
    os.write(opener, b"." * PROCESSES)
    ends, answers = [], []
    for child, reader in children.items():
        with os.fdopen(reader, "rb") as stream:
            answers.append(stream.read())
        ends.append(os.waitpid(child, 0)[1])
    os.close(opener)
    given = {answer for answer, end in zip(answers, ends, strict=True) if not end}
    left = [path.name for path in (cache / "converted").iterdir()]
    expected = [0] * (PROCESSES - kill) + [signal.SIGKILL] * kill
    if sorted(ends) != expected or len(given) != 1 or len(next(iter(given))) != 32:
        return f"ended with {ends}, {len(given)} different answers"
    return "" if len(left) == 1 else f"left behind: {left}"


def harness(folder: Path, starts: int) -> list[str]:
    """What went wrong, start by start."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["UNIMED_CACHE"] = str(folder / "cache")
    publish(folder / "published")
    return [start(folder / "published", folder / "cache", number % 2 == 1) for number in range(starts)]


if __name__ == "__main__":
    found = harness(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50)
    for number, problem in enumerate(found):
        if problem:
            print(f"start {number}: {problem}")
    print(f"{found.count('')} of {len(found)} starts of {PROCESSES} processes right")
    sys.exit(found.count("") < len(found))

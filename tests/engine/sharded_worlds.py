"""Run by test_sharded.py: checkpoints in parts by 1, 2 and 4 ranks, below the folder of the argument."""

import os
import signal
import sys
from pathlib import Path

import torch
import worlds

from unimed.engine import checkpoint, shard_writer, sharded, train

tiny = worlds.tiny
PLAIN = dict(task=dict(type="TinyTask", dropout=0.0), validate_interval=0, ema=0.9, strategy="fsdp2")


def parts(**changes):
    return dict(interval=2, keep=3, sharded=True) | changes


def training(run, steps, resume=None, size=2, **changes):
    changes = PLAIN | dict(checkpoint=parts(), schedule=dict(type="constant")) | changes
    train(tiny.config(**changes, max_steps=steps, batch_size=8 // size), run, resume=resume)


def without_gathering(run):
    """Trains while every way to a whole tensor is closed."""
    from torch.distributed.tensor import DTensor

    def closed(*_, **__):
        raise AssertionError("a tensor was gathered")

    DTensor.full_tensor = closed
    torch.nn.utils.clip_grad_norm_ = lambda *_: torch.tensor(1.0)
    training(run, 2)
    training(run, 4, resume="auto")


def faulty(run, fault):
    """On one rank the second checkpoint meets a fault while it is being written."""
    original = shard_writer.fingerprint

    def meet(path, flush=False):
        if "step_00000004" in str(path) and os.environ["RANK"] == "1":
            fault()
        return original(path, flush)

    shard_writer.fingerprint = meet
    try:
        training(run, 6, guards=dict(hang_timeout_s=20))
    except checkpoint.CheckpointError as error:
        print(f"refused: {error}")


def full():
    raise OSError(28, "No space left on device")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder):
    training(folder / "single", 2, size=1, strategy="single")  # and everything is imported
    codes = {}

    def ranks(name, size, work, *arguments, **options):
        run = folder / name.partition("-")[0]
        codes[name] = worlds.run(size, lambda: work(run, *arguments, **options), folder / f"{name}-output")
        return str(run / "checkpoints" / "step_00000004")

    two = ranks("two", 2, without_gathering)
    # Read by another number of ranks and written again at once: nothing may change.
    four = ranks("four", 4, training, 4, two, 4)
    ranks("one", 1, training, 4, four, 1, strategy="single")
    ranks("whole", 2, training, 6, checkpoint=parts(background=True))
    ranks("cut", 2, training, 6, two)
    ranks("full", 2, faulty, full)
    ranks("killed", 2, faulty, die)
    killed = sorted(path.name for path in (folder / "killed" / "checkpoints").glob("step_*"))
    ranks("killed-again", 2, training, 6, "auto")
    sizes = [sum(p.stat().st_size for p in sharded.own_files(Path(two) / sharded.FOLDER, rank)) for rank in (0, 1)]
    torch.save({"codes": codes, "sizes": sizes, "killed": killed}, folder / "done.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Fill a real disk while a checkpoint is written, and make it read-only: `python tests/faults/full_disk.py [SIZES]`.

Each of SIZES (default 60) file systems in memory is smaller than what is saved into it, by another amount, so that the
disk is full at another place of the save each time. Runs in a name space of its own (`unshare`, Linux), where mounting
needs no rights.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def harness(sizes: int) -> dict:
    """Returns {"full", "detected", "previous_used", "leftovers", "read_only_detected", "read_only_previous_used"}."""
    import torch

    from unimed.engine import checkpoint as checkpoints

    def sample(step):
        table = {"w": torch.arange(20_000.0) + step, "b": torch.ones(300)}
        return checkpoints.Checkpoint(step, {"model": table, "optimizer": dict(table)}, {"step": step, "x": "y" * 5000})

    result = dict.fromkeys(("full", "detected", "previous_used", "leftovers"), 0)
    folder = Path(tempfile.mkdtemp())
    for number in range(sizes):
        # One checkpoint takes 176 kB in pages of 4 kB; there is room for one and a part of the second.
        mount("-t", "tmpfs", "-o", f"size={180 + 2 * number + 4}k,nr_inodes=64", "tmpfs", str(folder))
        root = folder / "checkpoints"
        checkpoints.save(root, sample(10), keep=1)
        try:
            checkpoints.save(root, sample(20), keep=1)
        except checkpoints.CheckpointError as error:
            result["detected"] += "untouched" in str(error) and "step 20" in str(error)
        result["full"] += 1
        found = checkpoints.find(root)
        result["previous_used"] += found is not None and checkpoints.load(found).state["step"] == 10
        result["leftovers"] += sum(path.name != "step_00000010" for path in root.iterdir())
        subprocess.run(["umount", str(folder)], check=True)
    mount("-t", "tmpfs", "-o", "size=2M", "tmpfs", str(folder))
    checkpoints.save(folder / "checkpoints", sample(10), keep=1)
    mount("-o", "remount,ro", str(folder))
    try:
        checkpoints.save(folder / "checkpoints", sample(20), keep=1)
    except checkpoints.CheckpointError as error:
        result["read_only_detected"] = "Read-only file system" in str(error)
    result["read_only_previous_used"] = checkpoints.find(folder / "checkpoints").name == "step_00000010"
    return result


if __name__ == "__main__":
    if os.environ.get("UNIMED_OWN_MOUNTS") != "1":
        os.environ["UNIMED_OWN_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    print(harness(int(sys.argv[1]) if len(sys.argv) > 1 else 60))

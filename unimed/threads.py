"""How many threads a command computes with: as many as there are free cores, unless somebody says otherwise.

Threads of one operation wait for the slowest. Where other programs hold the cores, more threads than free cores take
longer than one, and burn the cores while they wait. What counts, first to last: `UNIMED_THREADS`, `OMP_NUM_THREADS`,
the cores this process may use (affinity, and the quota of its control group) less those that others keep busy.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: Variable of the environment that names the number; a command prints nothing about it.
VARIABLE = "UNIMED_THREADS"
_READ_BY_LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: Seconds in which the load is measured.
_LOOK_S = 0.1
_STAT, _GROUP = Path("/proc/stat"), Path("/sys/fs/cgroup")


def usable_cores() -> float:
    """Cores this process may use: affinity and quota of the control group (versions 1 and 2)."""
    count = float(len(_affinity()))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_GROUP / "cpu.max").read_text().split()
        return count if quota == "max" else min(count, float(quota) / float(period))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (float((_GROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return count if quota < 0 else min(count, quota / period)
    return count


def busy_cores() -> float:
    """Cores of the affinity that are busy now; this process, which sleeps meanwhile, is not among them.

    Where the system does not tell (no Linux) it is the load average of the last minute.
    """
    try:
        before = _times()
        time.sleep(_LOOK_S)
        after = _times()
    except (OSError, ValueError):
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = 0.0
    for core, (working, whole) in after.items():
        passed = whole - before.get(core, (0, whole))[1]
        busy += (working - before[core][0]) / passed if passed > 0 else 0.0
    return busy


def free_cores() -> int:
    """Usable cores that nobody keeps busy; at least 1."""
    return max(1, math.floor(usable_cores() - busy_cores() + 0.5))


def wanted() -> int | None:
    """The number somebody set, or None.

    Raises:
        ValueError: `UNIMED_THREADS` is no number from 1.
    """
    requested = os.environ.get(VARIABLE, "")
    if requested:
        if not requested.isdecimal() or int(requested) < 1:
            raise ValueError(
                f"{VARIABLE}={requested!r} is no number of threads; give a whole number from 1, or leave it out"
            )
        return int(requested)
    requested = os.environ.get(_READ_BY_LIBRARIES[0], "").split(",")[0]
    return int(requested) if requested.isdecimal() and int(requested) > 0 else None


@contextlib.contextmanager
def chosen(count: int | None = None) -> Iterator[int]:
    """Compute with this many threads within the block, in torch, numpy and child processes; yields the number.

    Args:
        count: by default what somebody set, else the free cores.

    Raises:
        ValueError: see `wanted`.
    """
    count = count or wanted() or free_cores()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    if torch and threads != count:
        torch.set_num_threads(count)
    try:
        with environment(count):
            yield count
    finally:
        if torch and threads != count:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def environment(count: int) -> Iterator[None]:
    """Child processes that are started within the block compute with this many threads."""
    before = {name: os.environ.get(name) for name in _READ_BY_LIBRARIES}
    os.environ.update(dict.fromkeys(before, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _times() -> dict[str, tuple[int, int]]:
    """Core -> (ticks of work, ticks in all)."""
    names, found = {f"cpu{number}" for number in _affinity()}, {}
    for row in _STAT.read_text().splitlines():
        name, *numbers = row.split()
        if name in names:
            ticks = [int(number) for number in numbers[:8]]
            idle = ticks[3] + ticks[4]  # waiting for a disk is idle
            found[name] = (sum(ticks) - idle, sum(ticks))
    if not found:
        raise ValueError("no core is listed")
    return found

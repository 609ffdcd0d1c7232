"""Less work per volume: slices that need no look, and the part of a slice that needs one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import pairwise

import numpy as np

#: Sides of what is cut out are multiples of this many pixels, as the steps of the image encoder need.
STEP_PX = 32
#: Pixels kept around the body.
MARGIN_PX = 16
#: Fraction of the brightest grey value from which a pixel belongs to the body.
_BODY = 0.1


def is_flat(plane: np.ndarray) -> bool:
    """Whether a slice has one value everywhere: there is nothing to find in it."""
    return plane.size == 0 or bool((plane == plane.flat[0]).all())


class Looking:
    """Which slices of a volume to look at: every `stride`-th first, then what a find makes necessary.

    Between two neighboring slices that were looked at, nothing more is looked at where both show no target, everything
    where one target is on both, and else the slice in the middle, until the border of every target is found. Where the
    runs of slices with a target, and those without it between two runs, are all at least `stride` long, a target comes
    or goes at most once between two slices of the first round, and what is left out is exactly what shows no target;
    runs at the two ends may be of any length. What is found on a slice does not depend on the stride.

    Args:
        depth: number of slices.
        stride: 1 looks at all of them.
    """

    def __init__(self, depth: int, stride: int):
        self.depth, self.stride = depth, stride
        self.found: dict[int, frozenset[Hashable]] = {}
        self.skipped: set[int] = set()

    def note(self, z: int, found: Iterable[Hashable]) -> None:
        """Which targets a slice shows."""
        self.found[z] = frozenset(found)

    def skip(self, z: int) -> None:
        """A slice that needs no look: nothing can be on it."""
        self.note(z, ())
        self.skipped.add(z)

    def following(self) -> list[int]:
        """The slices of the next round, in order, all of them to be noted before the one after; empty at the end."""
        if not self.found:
            return sorted({*range(0, self.depth, self.stride), self.depth - 1})
        numbers: list[int] = []
        for before, after in pairwise(sorted(self.found)):
            one, other = self.found[before], self.found[after]
            if one & other:
                numbers += range(before + 1, after)
            elif (one or other) and after - before > 1:
                numbers.append((before + after) // 2)
        return numbers

    @property
    def left_out(self) -> tuple[int, ...]:
        """Slices nobody looked at."""
        return tuple(z for z in range(self.depth) if z in self.skipped or z not in self.found)


def groups(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    """Slice numbers in lists of at most `size`."""
    numbers = list(numbers)
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def body(planes: Callable[[int], np.ndarray], depth: int, size: int) -> tuple[int, int, int, int]:
    """The rectangle (top, bottom, left, right) in px around everything brighter than air, over all slices.

    Args:
        planes: number -> slice of `size` x `size` grey values.
        size: a multiple of `STEP_PX`, else nothing is cut away.
    """
    whole = (0, size, 0, size)
    if size % STEP_PX:
        return whole
    brightest = np.zeros((size, size), np.float32)
    for z in range(depth):
        np.maximum(brightest, planes(z), out=brightest)
    there = brightest > _BODY * brightest.max()
    if not there.any():
        return whole
    sides = []
    for axis in (1, 0):
        places = np.flatnonzero(there.any(axis=axis))
        begin, end = max(places[0] - MARGIN_PX, 0), min(places[-1] + 1 + MARGIN_PX, size)
        length = min(-(-(end - begin) // STEP_PX) * STEP_PX, size)
        begin = min(begin, size - length)
        sides += [int(begin), int(begin + length)]
    return tuple(sides)

"""Less work per volume: slices that need no look, and the part of a slice that needs one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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
    """Which slices of a volume to look at: every `stride`-th first, then those beside a find.

    A slice is left out only where the nearest slices looked at on both sides show none of the targets; so what is lost
    are objects that lie wholly between two of them. What is found in a slice does not depend on the stride.

    Args:
        depth: number of slices.
        stride: 1 looks at all of them.
    """

    def __init__(self, depth: int, stride: int):
        self.depth, self.stride = depth, stride
        self.found: dict[int, bool] = {}

    def first(self) -> list[int]:
        """The slices of the first round; the last one is among them."""
        return sorted({*range(0, self.depth, self.stride), self.depth - 1})

    def note(self, z: int, found: bool) -> None:
        """Whether a target is there."""
        self.found[z] = found

    def second(self) -> list[int]:
        """Slices next to a find of the first round."""
        seen = sorted(self.found)
        between = zip(seen, seen[1:], strict=False)
        return [z for a, b in between if self.found[a] or self.found[b] for z in range(a + 1, b)]


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

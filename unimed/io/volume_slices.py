"""Which slices of a volume a training sample shows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np


def choose_slices(
    shows: Sequence[bool],
    count: int | None,
    foreground_fraction: float = 0.0,
    drawn: bool = False,
    contiguous: bool = False,
) -> list[int]:
    """Indices of `count` slices in order; all where `count` is None or there are no more.

    Args:
        shows: whether each slice shows the object.
        foreground_fraction: fraction of the chosen slices that shall show it, where there are that many.
        drawn: at random, by the global `random`; otherwise evenly over the volume.
        contiguous: neighbors, a patch whose place is drawn by the global `random`; `foreground_fraction` is then how
            often it holds a slice that shows the object.
    """
    if count is None or count >= len(shows):
        return list(range(len(shows)))
    if contiguous:
        with_it = [index for index, there in enumerate(shows) if there]
        start = random.randrange(len(shows) - count + 1)
        if with_it and random.random() < foreground_fraction:
            start = min(max(random.choice(with_it) - random.randrange(count), 0), len(shows) - count)
        return list(range(start, start + count))

    def spread(indices: list[int], number: int) -> list[int]:
        if drawn:
            return random.sample(indices, number)
        return [indices[int(place)] for place in np.linspace(0, len(indices) - 1, number).round()] if number else []

    with_it = [index for index, there in enumerate(shows) if there]
    chosen = set(spread(with_it, min(len(with_it), math.ceil(foreground_fraction * count))))
    rest = [index for index in range(len(shows)) if index not in chosen]
    return sorted(chosen | set(spread(rest, count - len(chosen))))

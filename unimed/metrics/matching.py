"""Optimal one-to-one assignment of what was predicted to what is there; every scorer pairs through it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy


def assign(
    likeness: np.ndarray, *further: np.ndarray, at_least: float = 0.0, most_pairs: bool = True
) -> list[tuple[int, int, float]]:
    """One-to-one pairs (row, column, likeness), in the order of the rows.

    Args:
        likeness: [N, M] in [0, 1]; pairs below `at_least`, and pairs at 0, are never made.
        further: [N, M] in [0, 1] each, deciding among assignments that the matrices before cannot tell apart (the
            place where names are equal).
        most_pairs: as many pairs as can be made, then the largest total likeness; False: the largest total alone.

    The result does not depend on the order of rows or columns where likenesses differ.

    Raises:
        ValueError: a matrix is not [N, M] as the first, or holds NaN.
    """
    likeness = np.asarray(likeness, dtype=np.float64)
    if likeness.ndim != 2 or any(np.shape(other) != likeness.shape for other in further):
        raise ValueError(f"matrices of one shape [N, M] are needed, got {[np.shape(m) for m in (likeness, *further)]}")
    if not likeness.size:
        return []
    allowed = (likeness > 0) & (likeness >= at_least)
    steps: list[np.ndarray] = [allowed.astype(np.float64)] if most_pairs else []
    steps += [likeness, *(np.asarray(other, dtype=np.float64) for other in further)]
    if any(np.isnan(step).any() for step in steps):
        raise ValueError("likenesses must not be NaN")
    # Each step may at most decide among equals of the step before: its whole sum stays below their resolution.
    gain, weight, size = np.zeros(likeness.shape), 1.0, min(likeness.shape)
    for number, step in enumerate(steps):
        gain += weight * np.where(allowed, step, 0.0)
        weight /= (2 if number == 0 and most_pairs else 1e4) * max(1, size)
    rows, columns = scipy.optimize.linear_sum_assignment(-gain)
    return [(int(i), int(j), float(likeness[i, j])) for i, j in zip(rows, columns, strict=True) if allowed[i, j]]


def in_order(pairs: Sequence[tuple[int, int, float]], count: int) -> list[int | None]:
    """For each of `count` columns the row that was assigned to it, None where none was."""
    partner: list[int | None] = [None] * count
    for row, column, _ in pairs:
        partner[column] = row
    return partner

"""Confidence intervals: bootstrap that resamples patients, and exact intervals of proportions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval at `level` (0.95: nineteen of twenty)."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    groups: Sequence | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    center: bool = False,
) -> Interval:
    """Percentile bootstrap of any statistic of indices, resampling whole groups.

    Args:
        statistic: takes an integer index array into the n items and returns a number; NaN results are left out.
        groups: patient of every item, [n]. Items of one patient are drawn together, as they are not independent;
            None draws items.
        center: move the draws so that their mean is the value. For statistics that resampling itself inflates, such
            as calibration errors, whose plain interval may lie above the value; the low end stays at or above 0.

    Returns:
        The statistic of all items with its interval; NaN ends when fewer than two groups exist.

    Raises:
        ValueError: n is 0, groups has another length, level outside (0, 1).
    """
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap needs items and a level in (0, 1), got n={n}, level={level}")
    if groups is not None and len(groups) != n:
        raise ValueError(f"groups has {len(groups)} entries for {n} items")
    members = [np.array([i]) for i in range(n)] if groups is None else _members(groups)
    value = float(statistic(np.arange(n)))
    if len(members) < 2:
        return Interval(value, float("nan"), float("nan"), level)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(members), len(members))
        draws.append(float(statistic(np.concatenate([members[c] for c in chosen]))))
    draws = np.array(draws)
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return Interval(value, float("nan"), float("nan"), level)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    if center:
        shift = draws.mean() - value
        low, high = max(0.0, low - shift), high - shift
    return Interval(value, float(low), float(high), level)


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, groups: Sequence | None = None, **options) -> Interval:
    """Bootstrap interval of the mean of the values that are not NaN; options as in `bootstrap`."""
    values = np.asarray(values, dtype=np.float64)
    keep = ~np.isnan(values)
    if not keep.any():
        return Interval(float("nan"), float("nan"), float("nan"), options.get("level", 0.95))
    groups = None if groups is None else [group for group, kept in zip(groups, keep, strict=True) if kept]
    values = values[keep]
    return bootstrap(lambda index: values[index].mean(), len(values), groups=groups, **options)


def paired_difference(first: Sequence[float], second: Sequence[float], **options) -> Interval:
    """Bootstrap interval of mean(first - second) over the same cases; above 0 throughout: first is better."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values differ in length: {first.shape} and {second.shape}")
    return bootstrap_mean(first - second, **options)


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> Interval:
    """Exact (conservative) interval of a share of `hits` in `n` independent trials (Clopper and Pearson 1934).

    Raises:
        ValueError: not 0 <= hits <= n, or n is 0.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"a proportion needs 0 <= hits <= n and n >= 1, got {hits} of {n}")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(scipy.stats.beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(scipy.stats.beta.ppf(1 - tail, hits + 1, n - hits))
    return Interval(hits / n, low, high, level)


def _members(groups: Sequence) -> list[np.ndarray]:
    order: dict = {}
    for index, group in enumerate(groups):
        order.setdefault(group, []).append(index)
    return [np.array(indices) for indices in order.values()]

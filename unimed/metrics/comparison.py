"""Is one model better than another on the same cases: tests, corrections for many of them, and sizes of effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def group_means(values: np.ndarray, groups: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """(sum of values, count) per group, in the order in which groups first appear. values: [n], no NaN."""
    order: dict = {}
    index = np.array([order.setdefault(group, len(order)) for group in groups], dtype=int)
    sums, counts = np.zeros(len(order)), np.zeros(len(order))
    np.add.at(sums, index, values)
    np.add.at(counts, index, 1)
    return sums, counts


def sign_flip_test(
    differences: Sequence[float], groups: Sequence | None = None, *, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of "the mean difference is 0" by flipping signs of whole groups (Fisher's paired permutation).

    Under the null hypothesis the two models are exchangeable on every patient, so the sign of all differences of one
    patient may be turned. All 2^patients turns are tried where these are no more than `resamples`; else so many are
    drawn and the observed one counts as one of them, so that p is never 0.

    Args:
        differences: first minus second, per case; NaN are left out.
        groups: patient of every case; None: every case is its own.

    Returns:
        p in (0, 1]; NaN where there is no case.
    """
    values = np.asarray(differences, dtype=np.float64)
    owners = list(range(len(values))) if groups is None else list(groups)
    if len(owners) != len(values):
        raise ValueError(f"{len(owners)} groups for {len(values)} differences")
    keep = ~np.isnan(values)
    sums, _ = group_means(values[keep], [owner for owner, kept in zip(owners, keep, strict=True) if kept])
    count = len(sums)
    if not count:
        return float("nan")
    observed = abs(sums.sum())
    # Sums of the same numbers in another order differ in the last digits.
    limit = observed - 1e-12 * max(1.0, np.abs(sums).sum())
    if count <= 62 and 2**count <= resamples:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((1 - 2 * bits) @ sums) >= limit).mean())
    generator = np.random.default_rng(seed)
    hits, left = 1, resamples
    while left:
        block = min(left, max(1, 2_000_000 // count))
        signs = generator.integers(0, 2, (block, count), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ sums) >= limit).sum())
        left -= block
    return hits / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down (1979); NaN stay NaN and do not count."""
    values = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    corrected, running = values.copy(), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - place) * values[index]))
        corrected[index] = running
    return corrected.tolist()


def effect_sizes(differences: Sequence[float], groups: Sequence | None = None) -> dict[str, float]:
    """How large a difference is, besides its mean.

    Returns:
        `cohen_dz`: mean over standard deviation of the means per patient (NaN below two patients, 0 where all are 0).
        `superiority`: share of patients for whom the first is better, ties half; 0.5 is no difference.
    """
    values = np.asarray(differences, dtype=np.float64)
    owners = list(range(len(values))) if groups is None else list(groups)
    keep = ~np.isnan(values)
    if not keep.any():
        return {"cohen_dz": float("nan"), "superiority": float("nan")}
    sums, counts = group_means(values[keep], [owner for owner, kept in zip(owners, keep, strict=True) if kept])
    means = sums / counts
    deviation = means.std(ddof=1) if len(means) > 1 else float("nan")
    if deviation == 0:
        size = 0.0 if means.mean() == 0 else float(np.copysign(np.inf, means.mean()))
    else:
        size = float(means.mean() / deviation)
    return {"cohen_dz": size, "superiority": float(((means > 0) + 0.5 * (means == 0)).mean())}


def rank_distribution(
    scores: np.ndarray, groups: Sequence, *, higher_is_better: bool = True, resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of models in bootstrap samples of patients.

    Args:
        scores: [models, cases], no NaN.
        groups: patient of every case.

    Returns:
        (rank of each model on all cases, [models]; ranks in each resample, [resamples, models]); 1 is the best, equal
        means share the mean of their ranks.
    """
    from scipy.stats import rankdata

    sign = -1.0 if higher_is_better else 1.0
    totals = [group_means(row, groups) for row in scores]
    sums, counts = np.array([total for total, _ in totals]), totals[0][1]
    generator = np.random.default_rng(seed)
    drawn = np.stack([
        np.bincount(generator.integers(0, len(counts), len(counts)), minlength=len(counts)) for _ in range(resamples)
    ])  # fmt: skip
    means = (drawn @ sums.T) / (drawn @ counts)[:, None]
    # Rounded, so that equal models stay equal whatever order their sums were taken in.
    ranks = rankdata(np.round(sign * means, 12), axis=1)
    return rankdata(np.round(sign * sums.sum(1) / counts.sum(), 12)), ranks

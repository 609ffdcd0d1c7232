"""Image-text retrieval: how high the right partner ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.registered import metric
from unimed.metrics.statistics import Interval, bootstrap_mean


def ranks(similarity: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Place (0 is best) of the best-ranked fitting column in every row.

    Args:
        similarity: [Q, G].
        fits: bool [Q, G], or [Q] with the fitting column of each row.

    Ties count against the query: a constant similarity ranks last, not first.

    Raises:
        ValueError: shapes differ, NaN, or a row that nothing fits.
    """
    similarity, fits = np.asarray(similarity, dtype=np.float64), np.asarray(fits)
    if similarity.ndim != 2 or len(fits) != len(similarity):
        raise ValueError(f"similarity {similarity.shape} and fits {fits.shape} do not belong together")
    if fits.ndim == 1:
        columns = fits
        fits = np.zeros(similarity.shape, dtype=bool)
        fits[np.arange(len(similarity)), columns] = True
    if np.isnan(similarity).any():
        raise ValueError("similarity holds NaN")
    if not fits.any(axis=1).all():
        raise ValueError(f"nothing fits query {int((~fits.any(axis=1)).argmax())}")
    best = np.where(fits, similarity, -np.inf).max(axis=1)
    return ((similarity >= best[:, None]) & ~fits).sum(axis=1)


def retrieval_scores(
    similarity: np.ndarray, fits: np.ndarray | None = None, at: Sequence[int] = (1, 5, 10), resamples: int = 0
) -> dict[str, float | Interval]:
    """Recall@k, mean and median rank (first place is 1) from images to texts and back.

    Args:
        similarity: [images, texts].
        fits: bool of that shape; None: text i belongs to image i. Give it where several images have the same text:
            finding an equal text is no error.
        resamples: bootstrap intervals of the recalls where above 0.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    fits = np.eye(len(similarity), dtype=bool) if fits is None else np.asarray(fits, dtype=bool)
    scores: dict[str, float | Interval] = {}
    for name, table, truth in (("image_to_text", similarity, fits), ("text_to_image", similarity.T, fits.T)):
        places = ranks(table, truth)
        scores[f"{name}_mean_rank"] = float(places.mean() + 1)
        scores[f"{name}_median_rank"] = float(np.floor(np.median(places)) + 1)
        for k in at:
            hits = (places < k).astype(float)
            scores[f"{name}_R@{k}"] = bootstrap_mean(hits, resamples=resamples) if resamples else float(hits.mean())
    return scores


def chance_recall(fits: np.ndarray, k: int) -> float:
    """Mean recall@k of a random order: the chance that k of G places hold one of the fitting ones."""
    from scipy.stats import hypergeom

    fits = np.asarray(fits, dtype=bool)
    return float(np.mean([1 - hypergeom.pmf(0, fits.shape[1], int(row.sum()), min(k, fits.shape[1])) for row in fits]))


@metric("recall_at_1", "similarity")
def recall_at_1(similarity: np.ndarray, fits: np.ndarray) -> float:
    """Fraction of queries [N] whose fitting column ranks first; ties count against it."""
    return float((ranks(similarity, fits) < 1).mean())

"""Gradient conflict between tasks: cosine and ratio of magnitudes of their gradients on shared weights.

The pictures of Uni-Med (arXiv 2409.17508) compare the gradients of tasks at the connector. Its formulas are not
published with the code; these are the usual ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def gram(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    """Inner products [T, T] of flat gradients, in float64.

    Raises:
        ValueError: gradients of different lengths.
    """
    flat = [np.asarray(gradient, dtype=np.float64).ravel() for gradient in gradients.values()]
    if len({len(vector) for vector in flat}) > 1:
        raise ValueError(f"gradients differ in length: { {n: len(v) for n, v in zip(gradients, flat, strict=True)} }")
    stacked = np.stack(flat)
    return stacked @ stacked.T


def direction_similarity(products: np.ndarray) -> np.ndarray:
    """Cosine of every pair [T, T] in [-1, 1] from inner products; NaN for a task without gradient."""
    norms = np.sqrt(np.diag(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(products / np.outer(norms, norms), -1.0, 1.0)


def magnitude_similarity(products: np.ndarray) -> np.ndarray:
    """2 |a| |b| / (|a|^2 + |b|^2) of every pair [T, T] in [0, 1]; 1 for equal lengths, NaN where both are 0."""
    squares = np.diag(products)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * np.sqrt(np.outer(squares, squares)) / (squares[:, None] + squares[None])


def mean_off_diagonal(matrix: np.ndarray) -> float:
    """Mean over pairs of different tasks, pairs without value left out; NaN without any."""
    values = matrix[~np.eye(len(matrix), dtype=bool)]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def conflict_share(matrix: np.ndarray) -> float:
    """Share of pairs of different tasks whose gradients point against each other (cosine < 0)."""
    values = matrix[~np.eye(len(matrix), dtype=bool)]
    values = values[~np.isnan(values)]
    return float((values < 0).mean()) if len(values) else float("nan")

"""Distances between the surfaces of two masks, in millimetres: NSD, Hausdorff, mean surface distance.

The surface runs between voxels and carries its true area (the surfel method of DeepMind's surface-distance, as
MONAI has it); MONAI is imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.masks import EMPTY_POLICIES
from unimed.metrics.registered import metric


def _surfaces(prediction, truth, spacing_mm):
    """Distances [mm] and areas [mm or mm2] of the surface elements of both masks: (d_pred, a_pred, d_true, a_true)."""
    try:
        import torch
        from monai.metrics.utils import get_mask_edges, get_surface_distance
    except ImportError as error:
        raise ImportError('surface metrics need MONAI: pip install "unimed[eval]"') from error
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_ or prediction.shape != truth.shape:
        raise ValueError(
            f"two bool masks of one shape are needed, got {prediction.dtype} {prediction.shape} and"
            f" {truth.dtype} {truth.shape}"
        )
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != truth.ndim or min(spacing) <= 0:
        raise ValueError(f"spacing_mm needs {truth.ndim} positive numbers in the order of the axes, got {spacing}")
    # Everything outside both masks is cropped; one voxel of rim keeps surfaces at the edge of the volume closed.
    where = np.argwhere(prediction | truth)
    box = tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
    pair = [torch.from_numpy(np.pad(mask[box], 1)) for mask in (prediction, truth)]
    # The two steps of `get_edge_surface_distance`, which passes an argument that MONAI itself warns of since 1.5.
    *edges, first_areas, second_areas = get_mask_edges(*pair, spacing=spacing)
    distances = [get_surface_distance(one, other, "euclidean", spacing) for one, other in (edges, edges[::-1])]
    areas = (first_areas, second_areas)
    first, second = (np.asarray(d, dtype=np.float64) for d in distances)
    first_area, second_area = (
        np.asarray(area, dtype=np.float64)[np.asarray(edge, dtype=bool)]
        for area, edge in zip(areas, edges, strict=True)
    )
    return first, first_area, second, second_area


def _empty(prediction, truth, empty):
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"empty must be one of {sorted(EMPTY_POLICIES)}, got {empty!r}")
    return not np.any(prediction), not np.any(truth)


@metric("nsd", "surface", nan="both masks are empty")
def nsd(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float | Sequence[float] = 2.0,
    *,
    empty: str = "ignore",
) -> float | list[float]:
    """Normalised surface Dice (Nikolov 2018): share of both surfaces within `tolerance_mm` of the other one.

    Args:
        prediction, truth: bool masks, HxW or DxHxW.
        spacing_mm: voxel size along each array axis.
        tolerance_mm: one tolerance, or several for one value each.
        empty: two empty masks, see `masks.EMPTY_POLICIES`; one empty mask scores 0.
    """
    tolerances = np.atleast_1d(np.asarray(tolerance_mm, dtype=np.float64))
    none_predicted, none_there = _empty(prediction, truth, empty)
    if none_predicted or none_there:
        both = {"ignore": float("nan"), "perfect": 1.0, "zero": 0.0}[empty]
        values = [both if none_predicted and none_there else 0.0] * len(tolerances)
    else:
        d_pred, a_pred, d_true, a_true = _surfaces(prediction, truth, spacing_mm)
        total = a_pred.sum() + a_true.sum()
        # MONAI measures in float32: a distance of 2.2 mm arrives as 2.20000005 and is still within 2.2 mm.
        within = tolerances * (1 + 1e-6)
        values = [float((a_pred[d_pred <= t].sum() + a_true[d_true <= t].sum()) / total) for t in within]
    return values if np.ndim(tolerance_mm) else values[0]


@metric(
    "hausdorff_95_mm",
    "surface",
    range=(0.0, float("inf")),
    better="lower",
    perfect=0.0,
    aggregation="median over cases",
    nan="both masks are empty",
)
def hausdorff(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], percentile: float = 95) -> float:
    """Robust Hausdorff distance in mm: the larger of the two area-weighted percentiles of surface distances.

    NaN when both masks are empty, infinite when one is.
    """
    none_predicted, none_there = _empty(prediction, truth, "ignore")
    if none_predicted or none_there:
        return float("nan") if none_predicted and none_there else float("inf")
    d_pred, a_pred, d_true, a_true = _surfaces(prediction, truth, spacing_mm)
    return max(_weighted(d_pred, a_pred, percentile), _weighted(d_true, a_true, percentile))


def mean_surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """Area-weighted mean distance in mm, (truth to prediction, prediction to truth); NaN or Inf as in `hausdorff`."""
    none_predicted, none_there = _empty(prediction, truth, "ignore")
    if none_predicted or none_there:
        return (float("nan") if none_predicted and none_there else float("inf"),) * 2
    d_pred, a_pred, d_true, a_true = _surfaces(prediction, truth, spacing_mm)
    return float((d_true * a_true).sum() / a_true.sum()), float((d_pred * a_pred).sum() / a_pred.sum())


def _weighted(distances, areas, percentile):
    order = np.argsort(distances)
    fraction = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(np.searchsorted(fraction, percentile / 100), len(order) - 1)])

"""Conformal prediction: boxes and masks that cover the truth with a chosen probability, for any model.

The promise is marginal over new patients that are exchangeable with the calibration patients, and it needs a
calibration set the model was not trained on. Sources: split conformal boxes as in Timans et al. (arXiv 2403.07263),
patients as clusters as in Lee, Barber and Willett (arXiv 2306.06342), risk control as in Angelopoulos et al.
(arXiv 2208.02814), mask margins as in arXiv 2503.05618.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import distance_transform_edt

from unimed.metrics.boxes import as_boxes, paired_iou
from unimed.metrics.statistics import clopper_pearson

SCALES = ("pixel", "size", "sigma")
STRATA = ("class", "size")


def conformal_quantile(scores: Sequence[float] | np.ndarray, alpha: float, groups: Sequence | None = None) -> float:
    """The margin that a new score stays below with probability at least 1 - alpha.

    Without groups: the ceil((n + 1)(1 - alpha))-th smallest score, infinite when that exceeds n. With groups
    (patients) every patient weighs the same and one more patient is put at infinity; it is the same number where
    every patient has one score.

    Raises:
        ValueError: alpha outside (0, 1), a score is NaN, groups of another length.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    if np.isnan(scores).any():
        raise ValueError(f"scores[{int(np.isnan(scores).argmax())}] is NaN")
    if groups is not None and len(groups) != len(scores):
        raise ValueError(f"groups has {len(groups)} entries for {len(scores)} scores")
    if not len(scores):
        return math.inf
    _, member, size = np.unique(
        np.arange(len(scores)).astype(str) if groups is None else np.asarray(groups).astype(str),
        return_inverse=True,
        return_counts=True,
    )
    weights = 1 / ((len(size) + 1) * size[member])
    order = np.argsort(scores, kind="stable")
    # Sums of 1/(n+1) miss the target by rounding; 1e-12 is far below any weight.
    reached = np.cumsum(weights[order]) >= 1 - alpha - 1e-12
    return float(scores[order][reached.argmax()]) if reached.any() else math.inf


def _margins(predicted, truth, scale, sigma):
    unit = _unit(predicted, scale, sigma)
    residual = np.concatenate([predicted[:, :2] - truth[:, :2], truth[:, 2:] - predicted[:, 2:]], axis=1)
    return (residual / unit).max(1), (-residual / unit).max(1)


def _unit(predicted, scale, sigma):
    if scale == "pixel":
        return np.ones_like(predicted)
    if scale == "size":
        side = predicted[:, 2:] - predicted[:, :2]
        unit, name = np.concatenate([side, side], axis=1), "a predicted box without area"
    elif scale == "sigma":
        if sigma is None:
            raise ValueError("scale='sigma' needs box_std_px for every box")
        unit, name = np.asarray(sigma, dtype=np.float64).reshape(-1, 4), "a standard deviation that is not positive"
    else:
        raise ValueError(f"scale must be one of {SCALES}, got {scale!r}")
    if unit.shape != predicted.shape or not (unit > 0).all():
        raise ValueError(f"scale={scale!r} cannot be used: {name}, or not four numbers per box")
    return unit


@dataclass(frozen=True)
class ConformalBoxes:
    """Margins for an outer box that holds the true one, and an inner box that lies within it.

    Each holds with probability 1 - alpha, both together with at least 1 - 2 alpha. `scale`: the margin is in pixels,
    in fractions of the box sides, or in multiples of the model's own spread. `by`: own margins per class and/or size
    tercile (Mondrian), so that the promise holds within each; a stratum with too few patients for a finite margin
    falls back to the pooled one.
    """

    alpha: float
    scale: str
    by: tuple[str, ...] = ()
    size_edges_px: tuple[float, ...] = ()
    outer: dict[str, float] = field(default_factory=dict)
    inner: dict[str, float] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        predicted,
        truth,
        *,
        alpha: float = 0.1,
        scale: str = "pixel",
        sigma=None,
        classes: Sequence[str] | None = None,
        groups: Sequence | None = None,
        by: Sequence[str] = (),
    ) -> ConformalBoxes:
        """Learn the margins from calibration boxes.

        Args:
            predicted, truth: boxes xyxy in pixels, [N, 4] each, of one phrase per row.
            alpha: allowed share of misses.
            scale: one of `SCALES`; "sigma" needs `sigma` [N, 4] in pixels.
            classes: class name per row for `by=("class",)`.
            groups: patient per row; rows of one patient are not independent.
            by: any of `STRATA`.

        Raises:
            ValueError: no boxes, unequal lengths, unknown scale or stratum, infinite pooled margin (too few patients).
        """
        predicted, truth = as_boxes(predicted, "predicted"), as_boxes(truth, "truth")
        if not len(truth) or len(predicted) != len(truth):
            raise ValueError(f"calibration needs paired boxes, got {len(predicted)} predicted and {len(truth)} true")
        if unknown := set(by) - set(STRATA):
            raise ValueError(f"by must be chosen from {STRATA}, got {sorted(unknown)}")
        if "class" in by and classes is None:
            raise ValueError("by=('class',) needs classes, one name per box")
        for name, values in (("classes", classes), ("groups", groups)):
            if values is not None and len(values) != len(truth):
                raise ValueError(f"{name} has {len(values)} entries for {len(truth)} boxes")
        outer, inner = _margins(predicted, truth, scale, sigma)
        groups = [str(i) for i in range(len(truth))] if groups is None else [str(g) for g in groups]
        edges = tuple(float(e) for e in np.quantile(_side(predicted), [1 / 3, 2 / 3])) if "size" in by else ()
        fitted = cls(alpha, scale, tuple(by), edges)
        keys = fitted._keys(predicted, classes)
        for key in ["all", *sorted(set(keys))] if by else ["all"]:
            rows = [i for i, own in enumerate(keys) if key in ("all", own)]
            part = [groups[i] for i in rows]
            fitted.outer[key] = conformal_quantile(outer[rows], alpha, part)
            fitted.inner[key] = conformal_quantile(inner[rows], alpha, part)
            fitted.patients[key] = len(set(part))
        if not math.isfinite(fitted.outer["all"]):
            raise ValueError(
                f"{fitted.patients['all']} calibration patients are too few for {1 - alpha:.0%} coverage:"
                f" at least {math.ceil(1 / alpha - 1)} are needed"
            )
        return fitted

    def _keys(self, predicted, classes) -> list[str]:
        parts = [["all"] * len(predicted)] if not self.by else []
        if "class" in self.by:
            parts.append([f"class={name}" for name in (classes if classes is not None else [""] * len(predicted))])
        if "size" in self.by:
            bins = np.searchsorted(self.size_edges_px, _side(predicted), side="right")
            parts.append([f"size={('small', 'medium', 'large')[b]}" for b in bins])
        return [" ".join(items) for items in zip(*parts, strict=True)]

    def margin(self, key: str, side: str) -> float:
        """Margin of a stratum, or the pooled one where the stratum is unknown or its margin infinite."""
        value = getattr(self, side).get(key, math.inf)
        return value if math.isfinite(value) else getattr(self, side)["all"]

    def boxes(self, predicted, *, sigma=None, classes: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Outer and inner boxes [N, 4] in pixels; an inner box that vanishes (no pixel is certain) is NaN."""
        predicted = as_boxes(predicted, "predicted")
        unit, keys = _unit(predicted, self.scale, sigma), self._keys(predicted, classes)
        direction = np.array([-1.0, -1.0, 1.0, 1.0])
        outer = predicted + direction * unit * np.array([[self.margin(key, "outer")] for key in keys]).reshape(-1, 1)
        inner = predicted - direction * unit * np.array([[self.margin(key, "inner")] for key in keys]).reshape(-1, 1)
        inner[((inner[:, 2:] - inner[:, :2]) <= 0).any(1)] = np.nan
        return outer, inner

    def coverage(
        self, predicted, truth, *, sigma=None, classes: Sequence[str] | None = None, level: float = 0.95
    ) -> list[dict]:
        """Measured coverage on boxes that were not calibrated on: a row for all, and one per stratum.

        Columns: stratum, boxes, `outer_coverage` and `inner_coverage` with Clopper-Pearson intervals, `stretch` (mean
        of sqrt(outer area / predicted area): the price), `iou` (mean of the predicted boxes), `no_core` (share
        without an inner box; such a row counts as covered).
        """
        predicted, truth = as_boxes(predicted, "predicted"), as_boxes(truth, "truth")
        outer, inner = self.boxes(predicted, sigma=sigma, classes=classes)
        held = np.asarray((outer[:, :2] <= truth[:, :2]).all(1) & (outer[:, 2:] >= truth[:, 2:]).all(1))
        none = np.isnan(inner[:, 0])
        core = none | ((inner[:, :2] >= truth[:, :2]).all(1) & (inner[:, 2:] <= truth[:, 2:]).all(1))
        stretch = np.sqrt(np.clip(outer[:, 2:] - outer[:, :2], 0, None).prod(1) / (_side(predicted) ** 2))
        overlap, keys = paired_iou(predicted, truth), self._keys(predicted, classes)
        rows = []
        for name in ["all", *sorted(set(keys) - {"all"})]:
            part = np.array([name in ("all", key) for key in keys])
            rows.append(
                {
                    "stratum": name,
                    "boxes": int(part.sum()),
                    "outer_coverage": clopper_pearson(int(held[part].sum()), int(part.sum()), level),
                    "inner_coverage": clopper_pearson(int(core[part].sum()), int(part.sum()), level),
                    "stretch": float(stretch[part].mean()),
                    "iou": float(overlap[part].mean()),
                    "no_core": float(none[part].mean()),
                }
            )
        return rows


def _side(boxes):
    return np.sqrt(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1))


def control_risk(losses: np.ndarray, alpha: float, groups: Sequence | None = None) -> int:
    """Index of the first setting whose expected loss on a new patient is at most alpha (conformal risk control).

    Args:
        losses: [N, L] in [0, 1], not growing along the L settings (from daring to careful).
        groups: patient per row; losses are averaged within a patient first.

    Raises:
        ValueError: losses outside [0, 1] or growing, or no setting keeps the risk (with how many patients it takes).
    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 2 or not len(losses) or not ((losses >= 0) & (losses <= 1)).all():
        raise ValueError(f"losses must be [N, L] in [0, 1] without NaN, got shape {losses.shape}")
    if (np.diff(losses, axis=1) > 1e-9).any():
        raise ValueError("losses must not grow from one setting to the next: order the settings from daring to careful")
    if groups is not None:
        names = np.asarray(groups).astype(str)
        losses = np.stack([losses[names == name].mean(0) for name in np.unique(names)])
    n = len(losses)
    fine = n / (n + 1) * losses.mean(0) + 1 / (n + 1) <= alpha + 1e-12
    if not fine.any():
        raise ValueError(
            f"no setting keeps the risk at {alpha} with {n} calibration patients; at least {math.ceil(1 / alpha - 1)}"
            " are needed, and the most careful setting must miss little enough"
        )
    return int(fine.argmax())


def mask_threshold(
    probabilities: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    alpha: float = 0.1,
    groups: Sequence | None = None,
    *,
    steps: int = 1000,
) -> float:
    """The highest threshold at which {probability >= threshold} misses at most alpha of the true voxels on average.

    Args:
        probabilities: maps in [0, 1]; truths: bool masks of the same shapes, none of them empty.
        steps: thresholds tried are 1, 1 - 1/steps, ..., 0.
    """
    thresholds = 1 - np.arange(steps + 1) / steps
    losses = []
    for index, (probability, truth) in enumerate(zip(probabilities, truths, strict=True)):
        inside = np.sort(np.asarray(probability, dtype=np.float64)[_filled(truth, index)])
        losses.append(np.searchsorted(inside, thresholds, side="left") / inside.size)
    return float(thresholds[control_risk(np.array(losses), alpha, groups)])


def mask_margin(
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    alpha: float = 0.1,
    groups: Sequence | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
    largest: float = 100.0,
    steps: int = 400,
) -> float:
    """The smallest margin by which hard masks must grow to miss at most alpha of the true voxels on average.

    Args:
        predictions, truths: bool masks; an empty prediction misses everything at any margin.
        spacing_mm: voxel size; without it the margin is in voxels.
        largest: the margins tried run from 0 to this in `steps` steps.
    """
    margins = np.linspace(0, largest, steps + 1)
    losses = []
    for index, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        inside = _filled(truth, index)
        if not np.any(prediction):
            losses.append(np.ones(len(margins)))
            continue
        away = np.sort(distance_transform_edt(~np.asarray(prediction, dtype=bool), sampling=spacing_mm)[inside])
        losses.append(1 - np.searchsorted(away, margins, side="right") / away.size)
    return float(margins[control_risk(np.array(losses), alpha, groups)])


def _filled(truth, index):
    truth = np.asarray(truth, dtype=bool)
    if not truth.any():
        raise ValueError(f"truths[{index}] is empty: missed voxels are defined only where there is something to miss")
    return truth

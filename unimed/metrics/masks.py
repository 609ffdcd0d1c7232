"""Overlap of masks, one pair at a time and aggregated per target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unimed.metrics.registered import metric

EMPTY_POLICIES = {
    "ignore": "prediction and truth both empty: NaN, counted and left out of every mean",
    "perfect": "prediction and truth both empty: 1",
    "zero": "prediction and truth both empty: 0",
}
_BOTH_EMPTY = {"ignore": float("nan"), "perfect": 1.0, "zero": 0.0}


def _pair(prediction, truth, empty: str) -> tuple[np.ndarray, np.ndarray, float]:
    if empty not in _BOTH_EMPTY:
        raise ValueError(f"empty must be one of {sorted(_BOTH_EMPTY)}, got {empty!r}")
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_:
            raise ValueError(
                f"{name} must be a bool mask, got {mask.dtype}; threshold it first, e.g. probability > 0.5"
            )
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} must have the same shape")
    return prediction, truth, _BOTH_EMPTY[empty]


@metric("dice", "mask", nan="both masks are empty")
def dice(prediction: np.ndarray, truth: np.ndarray, *, empty: str = "ignore") -> float:
    """Dice coefficient 2|P and T| / (|P| + |T|) of two bool masks of any equal shape.

    Args:
        empty: what two empty masks score, one of `EMPTY_POLICIES`. One empty mask against a filled one is always 0.

    Raises:
        ValueError: masks not bool, shapes differ, unknown policy.
    """
    prediction, truth, both_empty = _pair(prediction, truth, empty)
    total = int(prediction.sum()) + int(truth.sum())
    return 2.0 * int((prediction & truth).sum()) / total if total else both_empty


@metric("iou", "mask", nan="both masks are empty")
def iou(prediction: np.ndarray, truth: np.ndarray, *, empty: str = "ignore") -> float:
    """Intersection over union of two bool masks of equal shape; policies and errors as in `dice`."""
    prediction, truth, both_empty = _pair(prediction, truth, empty)
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else both_empty


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN when there are none (without numpy's warning)."""
    array = np.asarray(list(values), dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")


@dataclass
class MaskScores:
    """Dice and IoU collected case by case and target by target.

    Targets count equally in `*_mean_over_targets` however many cases they have; every (case, target) pair counts
    equally in `*_mean_over_cases`. Both appear, because they answer different questions.

    Args:
        empty: what two empty masks score, one of `EMPTY_POLICIES`.
    """

    empty: str = "ignore"
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self):
        if self.empty not in _BOTH_EMPTY:
            raise ValueError(f"empty must be one of {sorted(_BOTH_EMPTY)}, got {self.empty!r}")

    def add(
        self, target: str, prediction: np.ndarray, truth: np.ndarray, *, case_id: str = "", group: str = ""
    ) -> dict:
        """Score one pair of bool masks; `group` is the unit of resampling (a patient). Returns the row."""
        row = {
            "case": case_id,
            "group": group or case_id,
            "target": target,
            "dice": dice(prediction, truth, empty=self.empty),
            "iou": iou(prediction, truth, empty=self.empty),
            "truth_voxels": int(np.asarray(truth).sum()),
            "predicted_voxels": int(np.asarray(prediction).sum()),
        }
        self.rows.append(row)
        return row

    def per_target(self) -> dict[str, dict[str, float]]:
        """For every target: its case means, `cases` that count, and the numbers of empty pairs."""
        table = {}
        for target in sorted({row["target"] for row in self.rows}):
            rows = [row for row in self.rows if row["target"] == target]
            both_empty = sum(not row["truth_voxels"] and not row["predicted_voxels"] for row in rows)
            table[target] = {
                "cases": len(rows) - (both_empty if self.empty == "ignore" else 0),
                "both_empty": both_empty,
                "predicted_on_absent": sum(not row["truth_voxels"] and row["predicted_voxels"] > 0 for row in rows),
                "missed": sum(row["truth_voxels"] > 0 and not row["predicted_voxels"] for row in rows),
                "dice_mean_over_cases": nan_mean([row["dice"] for row in rows]),
                "iou_mean_over_cases": nan_mean([row["iou"] for row in rows]),
            }
        return table

    def summary(self) -> dict[str, float]:
        """Aggregates over everything added, each named by its aggregation. NaN where nothing counts."""
        table = self.per_target()
        dices = [row["dice"] for row in self.rows if not np.isnan(row["dice"])]
        return {
            "dice_mean_over_targets": nan_mean([row["dice_mean_over_cases"] for row in table.values()]),
            "iou_mean_over_targets": nan_mean([row["iou_mean_over_cases"] for row in table.values()]),
            "dice_mean_over_cases": nan_mean(dices),
            "dice_median_over_cases": float(np.median(dices)) if dices else float("nan"),
            "iou_mean_over_cases": nan_mean([row["iou"] for row in self.rows]),
            "cases": sum(row["cases"] for row in table.values()),
            "both_empty": sum(row["both_empty"] for row in table.values()),
            "targets": len(table),
        }

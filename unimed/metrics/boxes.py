"""Boxes: area, overlap, accuracy at overlap thresholds, and the zero / one / many protocol.

All boxes are xyxy in pixels with exclusive x2, y2 (a box from 0 to 10 is 10 pixels wide).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.masks import nan_mean
from unimed.metrics.matching import assign
from unimed.metrics.registered import metric

THRESHOLDS = (0.1, 0.3, 0.5)


def as_boxes(boxes, name: str = "boxes_xyxy_px") -> np.ndarray:
    """Boxes as a float64 array [N, 4]; an empty list gives [0, 4].

    Raises:
        ValueError: the last axis is not 4, or a coordinate is NaN or Inf (the index of the first one is named).
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    array = array.reshape(1, 4) if array.shape == (4,) else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name} must be [N, 4] as x1, y1, x2, y2, got shape {array.shape}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(f"{name}[{int(bad.argmax())}] = {array[bad.argmax()].tolist()} holds NaN or Inf")
    return array


def area(boxes) -> np.ndarray:
    """Area [N] in square pixels; a box with x2 <= x1 or y2 <= y1 has none."""
    boxes = as_boxes(boxes)
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def iou_matrix(first, second) -> np.ndarray:
    """Intersection over union of every pair: [N, 4] and [M, 4] to [N, M] in [0, 1]; 0 where both have no area."""
    first, second = as_boxes(first, "first"), as_boxes(second, "second")
    intersection, union = _intersection_union(first[:, None], second[None])
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def paired_iou(first, second) -> np.ndarray:
    """Intersection over union of box i with box i: two [N, 4] to [N].

    Raises:
        ValueError: the two do not hold the same number of boxes.
    """
    first, second = _paired(first, second)
    intersection, union = _intersection_union(first, second)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def paired_giou(first, second) -> np.ndarray:
    """Generalised IoU (Rezatofighi 2019) of box i with box i, in [-1, 1]: IoU less the empty share of the hull."""
    first, second = _paired(first, second)
    intersection, union = _intersection_union(first, second)
    hull = area(np.concatenate([np.minimum(first[:, :2], second[:, :2]), np.maximum(first[:, 2:], second[:, 2:])], 1))
    overlap = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return overlap - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def _paired(first, second):
    first, second = as_boxes(first, "first"), as_boxes(second, "second")
    if len(first) != len(second):
        raise ValueError(
            f"boxes of shape {list(first.shape)} cannot be paired with {list(second.shape)}, box i with box i; "
            "iou_matrix compares every one with every other"
        )
    return first, second


def _intersection_union(first, second):
    corner = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.clip(corner, 0, None).prod(-1)
    sizes = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1) for boxes in (first, second)]
    # An inverted box may cross another one in the formula above; it has no area, so it overlaps nothing.
    intersection = np.where((sizes[0] > 0) & (sizes[1] > 0), intersection, 0.0)
    return intersection, sizes[0] + sizes[1] - intersection


@metric("box_iou", "box")
def box_iou(predicted: Sequence[float], truth: Sequence[float]) -> float:
    """Intersection over union of two boxes xyxy in pixels."""
    return float(paired_iou([predicted], [truth])[0])


@metric("box_giou", "box", range=(-1.0, 1.0))
def box_giou(predicted: Sequence[float], truth: Sequence[float]) -> float:
    """Generalised IoU of two boxes, see `paired_giou`."""
    return float(paired_giou([predicted], [truth])[0])


def accuracy_at(ious: Sequence[float], thresholds: Sequence[float] = THRESHOLDS) -> dict[str, float]:
    """`miou` and `acc_at_50` style fractions of samples with IoU >= threshold, one box per sample.

    The literature of phrase grounding often prints these fractions as "AP"; there is no ranking in them.
    """
    ious = np.asarray(ious, dtype=np.float64)
    if ious.size == 0:
        return {"miou": float("nan")} | {_name("acc_at", t): float("nan") for t in thresholds}
    return {"miou": float(ious.mean())} | {_name("acc_at", t): float((ious >= t).mean()) for t in thresholds}


def _name(prefix: str, threshold: float) -> str:
    return f"{prefix}_{round(threshold * 100)}"


def match(predicted, truth) -> list[tuple[int, int, float]]:
    """One-to-one pairs (predicted index, truth index, IoU) of largest total IoU; pairs without overlap are left out.

    predicted is [N, 4], truth [M, 4] (Hungarian assignment of scipy).
    """
    return assign(iou_matrix(predicted, truth), most_pairs=False)


def score_phrase(predicted, truth, thresholds: Sequence[float] = THRESHOLDS) -> dict:
    """One phrase with zero, one or many true boxes against zero, one or many predicted ones.

    Returns:
        protocol: "zero", "one" or "many" by the number of true boxes.
        miou: sum of matched IoU / max(predicted, true) - a superfluous and a missed box both cost; 1 where both are 0.
        tp_at_50 and so on: matched pairs with IoU >= threshold; predicted_boxes, true_boxes: counts.
    """
    predicted, truth = as_boxes(predicted, "predicted"), as_boxes(truth, "truth")
    pairs = match(predicted, truth)
    most = max(len(predicted), len(truth))
    row = {
        "protocol": ("zero", "one", "many")[min(len(truth), 2)],
        "predicted_boxes": len(predicted),
        "true_boxes": len(truth),
        "miou": sum(pair[2] for pair in pairs) / most if most else 1.0,
    }
    return row | {_name("tp_at", t): sum(pair[2] >= t for pair in pairs) for t in thresholds}


@metric("miou", "boxes", aggregation="mean over phrases")
def boxes_miou(predicted, truth) -> float:
    """`miou` of `score_phrase`: a superfluous and a missed box both cost; no box where none is scores 1."""
    return float(score_phrase(predicted, truth)["miou"])


@metric("box_f1_at_50", "boxes", aggregation="micro: counts are summed first", nan="no box on either side")
def box_f1_at_50(predicted, truth) -> float:
    """F1 of boxes that meet a true one with IoU >= 0.5."""
    return summarize_phrases([score_phrase(predicted, truth)])["box_f1_at_50"]


def summarize_phrases(rows: Sequence[dict], thresholds: Sequence[float] = THRESHOLDS) -> dict[str, float]:
    """Aggregate rows of `score_phrase`: micro precision, recall and F1 over boxes, and means per protocol.

    `false_box_rate` is the share of phrases without a true box that got one anyway (NaN when there are none).
    """
    result: dict[str, float] = {"phrases": len(rows), "miou_mean_over_phrases": nan_mean([r["miou"] for r in rows])}
    for name in ("zero", "one", "many"):
        part = [row for row in rows if row["protocol"] == name]
        result[f"phrases_{name}"] = len(part)
        result[f"miou_mean_over_phrases_{name}"] = nan_mean([row["miou"] for row in part])
    absent = [row for row in rows if row["protocol"] == "zero"]
    result["false_box_rate"] = nan_mean([float(row["predicted_boxes"] > 0) for row in absent])
    predicted, true = (sum(row[f"{side}_boxes"] for row in rows) for side in ("predicted", "true"))
    for threshold in thresholds:
        hits = sum(row[_name("tp_at", threshold)] for row in rows)
        result[_name("box_precision_at", threshold)] = hits / predicted if predicted else float("nan")
        result[_name("box_recall_at", threshold)] = hits / true if true else float("nan")
        result[_name("box_f1_at", threshold)] = 2 * hits / (predicted + true) if predicted + true else float("nan")
    return result

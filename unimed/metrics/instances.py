"""Instances: matching of label maps, F1 and average precision at IoU thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import generate_binary_structure, label

from unimed.metrics.matching import assign
from unimed.metrics.registered import metric


def components(mask: np.ndarray) -> np.ndarray:
    """Number the parts of a mask that touch by an edge (2D) or face (3D); int32 label map, 0 is background."""
    mask = np.asarray(mask) > 0
    return label(mask, structure=generate_binary_structure(mask.ndim, 1))[0].astype(np.int32)


def label_iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of every predicted with every true instance, [P, T], ordered by label number; labels 0 are background.

    Raises:
        ValueError: shapes differ or a map is not of integers.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or predicted.dtype.kind not in "iub" or truth.dtype.kind not in "iub":
        raise ValueError(
            f"two integer label maps of one shape are needed, got {predicted.dtype} {predicted.shape}"
            f" and {truth.dtype} {truth.shape}"
        )
    names_p, index_p = np.unique(predicted, return_inverse=True)
    names_t, index_t = np.unique(truth, return_inverse=True)
    joint = np.bincount(index_p.ravel() * len(names_t) + index_t.ravel(), minlength=len(names_p) * len(names_t))
    joint = joint.reshape(len(names_p), len(names_t))
    union = joint.sum(1, keepdims=True) + joint.sum(0, keepdims=True) - joint
    return (joint / union)[names_p != 0][:, names_t != 0]


def match_instances(overlap: np.ndarray, threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """One-to-one pairs (predicted, true, IoU) with IoU >= threshold: most pairs first, then largest total IoU."""
    return assign(overlap, at_least=threshold)


def instance_scores(
    predicted: np.ndarray, truth: np.ndarray, thresholds: Sequence[float] = (0.5, 0.75)
) -> dict[str, float]:
    """Detection quality of one image or volume of instances.

    Args:
        predicted, truth: integer label maps; touching instances stay apart (use `components` for binary masks).

    Returns:
        Per threshold t (in percent): tp_t, fp_t, fn_t, precision_t, recall_t, f1_t, `ap_t` = tp / (tp + fp + fn)
        (the "average precision" of the nucleus segmentation challenges, without ranking), `dice_matched_t` = mean
        Dice of matched pairs (0 without any). F1 and AP are NaN when there is nothing and nothing was said.
    """
    overlap = label_iou(predicted, truth)
    n_predicted, n_true = overlap.shape
    result: dict[str, float] = {"predicted": n_predicted, "true": n_true}
    for threshold in thresholds:
        pairs = match_instances(overlap, threshold)
        hits, name = len(pairs), f"{round(threshold * 100)}"
        result |= {f"tp_{name}": hits, f"fp_{name}": n_predicted - hits, f"fn_{name}": n_true - hits}
        result |= _detection(hits, n_predicted, n_true, name)
        # Dice of a pair follows from its IoU.
        result[f"dice_matched_{name}"] = float(np.mean([2 * v / (1 + v) for _, _, v in pairs])) if pairs else 0.0
    return result


def pool_instances(rows: Sequence[dict], thresholds: Sequence[float] = (0.5, 0.75)) -> dict[str, float]:
    """Micro precision, recall, F1 and AP over cases: counts of `instance_scores` rows are added up first."""
    result: dict[str, float] = {}
    for threshold in thresholds:
        name = f"{round(threshold * 100)}"
        hits, false, missed = (sum(row[f"{kind}_{name}"] for row in rows) for kind in ("tp", "fp", "fn"))
        result |= {f"{k}_micro": v for k, v in _detection(hits, hits + false, hits + missed, name).items()}
    return result


def _detection(hits, n_predicted, n_true, name):
    nan = float("nan")
    return {
        f"precision_{name}": hits / n_predicted if n_predicted else nan,
        f"recall_{name}": hits / n_true if n_true else nan,
        f"f1_{name}": 2 * hits / (n_predicted + n_true) if n_predicted + n_true else nan,
        f"ap_{name}": hits / (n_predicted + n_true - hits) if n_predicted + n_true else nan,
    }


def _register_instance_metrics() -> None:
    for threshold in (50, 75):
        for name in (f"f1_{threshold}", f"ap_{threshold}"):
            metric(name, "instances", nan="no instance on either side")(
                lambda predicted, truth, key=name, t=threshold / 100: instance_scores(predicted, truth, (t,))[key]
            )


_register_instance_metrics()

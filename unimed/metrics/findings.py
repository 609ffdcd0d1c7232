"""Free-text 3D grounding as ReXGroundingCT scores it (arXiv 2507.22030): Dice and hits of findings, instances by Dice.

A finding is one sentence about one scan and its mask. Over all findings: Dice is their mean, the hit rate the fraction
with a Dice of at least 0.1. Within a finding, parts of the masks that touch are instances; a predicted and a true one
are a true positive where their Dice is at least 0.2, one to one. Precision and recall are of the instances of all
findings added up, F1 is their harmonic mean. The protocol does not say which voxels touch: those that share a face do
here, and labels that are given stay apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.instances import components, label_iou, match_instances
from unimed.metrics.masks import dice, nan_mean
from unimed.metrics.registered import metric

#: Dice from which on a finding is hit, and an instance is found.
HIT, FOUND = 0.1, 0.2


@metric("finding_hit", kind="instances", nan="no instance on either side", aggregation="mean over findings (hit rate)")
def finding_hit(prediction: np.ndarray, truth: np.ndarray, threshold: float = HIT) -> float:
    """1.0 where the Dice of the masks of a finding (all instances together) is at least `threshold`, else 0.0."""
    value = dice(np.asarray(prediction) > 0, np.asarray(truth) > 0)
    return value if np.isnan(value) else float(value >= threshold)


def finding_scores(
    prediction: np.ndarray, truth: np.ndarray, *, hit: float = HIT, found: float = FOUND
) -> dict[str, float]:
    """One finding: dice and hit (NaN where both masks are empty), and the instances tp, fp, fn.

    Args:
        prediction, truth: masks of one shape (bool: touching voxels are an instance), or integer label maps of
            instances, 0 is background.

    Raises:
        ValueError: shapes differ, or probabilities instead of masks.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} must have one shape")
    if prediction.dtype.kind not in "biu" or truth.dtype.kind not in "biu":
        raise ValueError(f"masks or label maps are needed, got {prediction.dtype} and {truth.dtype}; threshold first")
    value = dice(prediction > 0, truth > 0)
    overlap = label_iou(*(mask if mask.dtype.kind in "iu" else components(mask) for mask in (prediction, truth)))
    # Dice d and IoU d / (2 - d) order pairs alike; the last digits of 2 I / (P + T) must not decide at the threshold.
    pairs = match_instances(overlap, found / (2 - found) * (1 - 1e-9))
    predicted, true = overlap.shape
    counts = {"tp": len(pairs), "fp": predicted - len(pairs), "fn": true - len(pairs)}
    return {"dice": float(value), "hit": finding_hit(prediction, truth, hit), **counts}


def pool_findings(rows: Sequence[dict]) -> dict[str, float]:
    """The leaderboard's figures of many findings (rows of `finding_scores`).

    Returns:
        findings, global_dice, hit_rate, instance_precision, instance_recall, instance_f1. A precision without any
        predicted instance, or a recall without any true one, is NaN, F1 then 0 unless there is neither.
    """
    nan = float("nan")
    tp, fp, fn = (sum(row[name] for row in rows) for name in ("tp", "fp", "fn"))
    return {
        "findings": len(rows),
        "global_dice": nan_mean([row["dice"] for row in rows]),
        "hit_rate": nan_mean([row["hit"] for row in rows]),
        "instance_precision": tp / (tp + fp) if tp + fp else nan,
        "instance_recall": tp / (tp + fn) if tp + fn else nan,
        "instance_f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else nan,
    }


@metric("finding_instance_f1", kind="instances", nan="no instance on either side")
def finding_instance_f1(prediction: np.ndarray, truth: np.ndarray) -> float:
    """F1 of the instances of one finding, matched at a Dice of 0.2."""
    return pool_findings([finding_scores(prediction, truth)])["instance_f1"]

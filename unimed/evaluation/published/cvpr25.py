"""Scoring of text-prompted 3D segmentation as in the CVPR 2025 foundation model challenge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.instances import components, instance_scores
from unimed.metrics.masks import dice, nan_mean


def score_semantic(
    predicted: np.ndarray,
    truth: np.ndarray,
    prompt_ids: Sequence[int],
    *,
    spacing_mm: Sequence[float] | None = None,
    tolerance_mm: float = 2.0,
    compat: str | None = None,
) -> dict:
    """Dice (and NSD with a spacing) of every prompted label of one volume.

    Args:
        predicted, truth: integer label maps DxHxW; a label is the number of its prompt.
        prompt_ids: labels that were asked for.
        spacing_mm: voxel size along the axes; None leaves NSD out.
        compat: None: a prompted label that is absent scores 0 when something was predicted for it and is left out when
            nothing was. "reference": the published scoring, where false labels cost nothing and the smallest value in
            the truth is taken for background even when it is a label.

    Returns:
        DSC and NSD (means over the scored labels, NaN without any), labels (rows per label), false_labels.
    """
    predicted, truth = _maps(predicted, truth)
    present = [int(v) for v in np.unique(truth)]
    present = present[1:] if compat == "reference" else [v for v in present if v != 0]
    predicted_labels = {int(v) for v in np.unique(predicted)} - {0}
    asked = [int(v) for v in prompt_ids if v != 0]
    false = [v for v in asked if v not in present and v in predicted_labels]
    scored = [v for v in asked if v in present] + ([] if compat == "reference" else false)
    rows = []
    for label in sorted(scored):
        row = {"label": label, "present": label in present, "DSC": dice(predicted == label, truth == label)}
        if spacing_mm is not None:
            from unimed.metrics.surfaces import nsd

            row["NSD"] = nsd(predicted == label, truth == label, spacing_mm, tolerance_mm)
        rows.append(row)
    result = {"DSC": nan_mean([row["DSC"] for row in rows]), "labels": rows, "false_labels": false}
    if spacing_mm is not None:
        result["NSD"] = nan_mean([row["NSD"] for row in rows])
    return result


def score_instances(
    predicted: np.ndarray, truth: np.ndarray, *, threshold: float = 0.5, compat: str | None = None
) -> dict[str, float]:
    """F1 and mean Dice of matched instances of one volume.

    Args:
        predicted: integer label map; a binary map is split into its parts.
        truth: integer label map, one number per instance.
        threshold: IoU from which a pair counts as found.
        compat: None: predicted numbers are instances when there is more than one, true ones always are. "reference":
            the prediction is made binary and split anew, so that touching instances merge; parts of a true
            instance that do not touch count one by one.

    Returns:
        F1, DSC_TP, tp, fp, fn. F1 is 0 when nothing was predicted, and NaN when nothing is there either.
    """
    predicted, truth = _maps(predicted, truth)
    if compat == "reference":
        predicted, truth = components(predicted > 0), _parts(truth)
    elif len(np.unique(predicted[predicted > 0])) < 2:
        predicted = components(predicted > 0)
    scores, name = instance_scores(predicted, truth, (threshold,)), f"{round(threshold * 100)}"
    return {
        "F1": scores[f"f1_{name}"],
        "DSC_TP": scores[f"dice_matched_{name}"],
        "tp": scores[f"tp_{name}"],
        "fp": scores[f"fp_{name}"],
        "fn": scores[f"fn_{name}"],
    }


def _parts(labels):
    result, count = np.zeros(labels.shape, np.int32), 0
    for value in np.unique(labels[labels > 0]):
        part = components(labels == value)
        result[part > 0] = part[part > 0] + count
        count += int(part.max())
    return result


def _maps(predicted, truth):
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} must have the same shape")
    for name, array in (("predicted", predicted), ("truth", truth)):
        if array.dtype.kind not in "iub":
            raise ValueError(f"{name} must be an integer label map, got {array.dtype}")
    return predicted, truth

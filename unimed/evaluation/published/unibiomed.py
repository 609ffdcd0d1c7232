"""Mask, region and 3D metrics as published with UniBiomed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from unimed.metrics.masks import dice, iou


def matched_mean(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray], measure: str = "dice") -> float:
    """Published mDice (or mIoU) of one image: greedy one-to-one pairs of best overlap, mean over *found pairs* only.

    Quirks kept: masks left without a partner cost nothing, two empty masks score 1, no pair at all scores 0. Ours is
    `instances` or `masks.MaskScores`, where superfluous and missed masks count.
    """
    score = {"dice": dice, "iou": iou}[measure]
    if not len(predicted) or not len(truth):
        return 0.0
    table = np.array([[score(p, t, empty="perfect") for t in truth] for p in predicted])
    found = []
    while table.size and table.max() > 0:
        i, j = np.unravel_index(table.argmax(), table.shape)
        found.append(table[i, j])
        table = np.delete(np.delete(table, i, 0), j, 1)
    return float(np.mean(found)) if found else 0.0


def segmentation_table(rows: Sequence[Mapping]) -> dict:
    """Published aggregation of 2D and 3D segmentation over rows with expression, dice, iou.

    Quirks kept: class means are sum / (n + 1e-6); `mean_class_*` are means over classes, and `mean_dice` and
    `mean_iou` are means over cases, each counted once per class. Cases whose truth is empty must be left out before,
    as the reference does (false positives there are free).
    """
    classes = list(dict.fromkeys(row["expression"] for row in rows))
    table: dict = {}
    for name in classes:
        part = [row for row in rows if row["expression"] == name]
        table[name] = {
            "dice": sum(row["dice"] for row in part) / (len(part) + 1e-6),
            "IoU": sum(row["iou"] for row in part) / (len(part) + 1e-6),
        }
    for ours, theirs in (("dice", "dice"), ("iou", "IoU")):
        table[f"mean_class_{ours}"] = sum(table[name][theirs] for name in classes) / (len(classes) + 1e-6)
        table[f"mean_{ours}"] = sum(row[ours] for row in rows) / (len(rows) + 1e-6 / max(1, len(classes)))
    return table


def volume_scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Published 3D dice, "hd95" and nsd of two bool volumes, in voxels.

    Quirks kept: "hd95" is the 95th percentile over voxels of one mask outside the other of their distance to it, not
    a distance of surfaces; nsd counts surface voxels within 2 voxels of the other *mask*; spacing is ignored; two
    empty masks score 0. Where the reference fails on equal masks, hd95 is 0 here. Ours is `surfaces`.
    """
    predicted, truth = np.asarray(predicted, dtype=bool), np.asarray(truth, dtype=bool)
    overlap = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum() + 1e-8)
    if not predicted.any() or not truth.any():
        return {"dice": float(overlap), "hd95": float("nan"), "nsd": 0.0}
    to_truth, to_predicted = distance_transform_edt(~truth), distance_transform_edt(~predicted)
    apart = np.concatenate([to_truth[predicted & ~truth], to_predicted[truth & ~predicted]])
    surfaces = [mask & ~binary_erosion(mask) for mask in (predicted, truth)]
    near = (to_truth[surfaces[0]] <= 2).sum() + (to_predicted[surfaces[1]] <= 2).sum()
    return {
        "dice": float(overlap),
        "hd95": float(np.percentile(apart, 95)) if apart.size else 0.0,
        "nsd": float(near / (surfaces[0].sum() + surfaces[1].sum() + 1e-8)),
    }


def short_region(caption: str) -> str:
    """A region caption cut down to "<target> in <last word>", sides left out, as it was scored."""
    head, last = caption.split(" in ")[0], caption.split(" ")[-1]
    return f"{head.replace('right ', '').replace('left ', '')} in {last}"


def region_correct(predicted: str, truth: str) -> bool:
    """Published correctness of a region caption: what stands before the first " in " is equal, and the last word of the
    truth (the modality) is a substring of the last word of the answer."""
    answer, true = predicted.lower(), truth.lower()
    return answer.split(" in ")[0] == true.split(" in ")[0] and true.split(" ")[-1] in answer.split(" ")[-1]


def answer_accuracy(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Published accuracy of answers: the truth is a substring of the answer; sum / (n + 1e-6)."""
    return sum(t in p for p, t in zip(predicted, truth, strict=True)) / (len(truth) + 1e-6)

"""Scores of text-prompted masks: overlap per target and modality, and existence as a detection problem."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unimed.evaluation.tables import means_by
from unimed.io.result import Prediction
from unimed.metrics.masks import dice, iou, nan_mean
from unimed.metrics.presence import presence_scores
from unimed.structures import Sample


def score_parsing(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict:
    """Compare regions one by one, in the order of each sample.

    A present target counts with its Dice, zero where nothing was painted. A target that is not there has no Dice; what
    was painted for it shows up in `false_mask_rate`.

    Returns:
        "summary" (flat numbers), "tables" {name: rows} and "cases" (one row per sample and target). The shares
        `positive`, `true_positive`, `false_positive`, `false_negative` are of all prompts, as BiomedParse prints them.

    Raises:
        ValueError: a prediction with another number of regions than its sample.
    """
    cases = []
    for sample, prediction in zip(samples, predictions, strict=True):
        if len(sample.regions) != len(prediction.regions):
            raise ValueError(f"{sample.sample_id}: {len(prediction.regions)} regions for {len(sample.regions)} prompts")
        targets = sample.labels.get("targets") or [region.phrase.lower() for region in sample.regions]
        for target, truth, found in zip(targets, sample.regions, prediction.regions, strict=True):
            present = truth.mask is not None and bool(truth.mask.any())
            if truth.mask is None and (truth.presence is None or truth.presence >= 0.5):
                continue  # nothing is known about it
            row = {
                "case_id": sample.sample_id,
                "group": hashlib.sha256((sample.patient_id or sample.sample_id).encode()).hexdigest()[:12],
                "kind": "volume" if truth.mask is not None and truth.mask.ndim == 3 else "picture",
                "modality": sample.modality,
                "target": str(target),
                "prompt": truth.phrase,
                "present": present,
                "existence": found.presence,
                "painted": int(found.mask.sum()) if found.mask is not None else 0,
            }
            if present:
                mask = found.mask if found.mask is not None else np.zeros_like(truth.mask)
                row |= {"dice": dice(mask, truth.mask), "iou": iou(mask, truth.mask)}
            cases.append(row)
    shown = [row for row in cases if row["present"]]
    summary = {"prompts": len(cases), "present": len(shown)}
    tables = {}
    if shown:
        tables["targets"] = means_by(shown, ["kind", "target"], ["dice", "iou"])
        tables["modalities"] = means_by(shown, "modality", ["dice", "iou"])
        per_target = defaultdict(list)
        for row in shown:
            per_target[row["target"]].append(row["dice"])
        summary |= {
            "dice_mean_over_cases": nan_mean([row["dice"] for row in shown]),
            "dice_mean_over_targets": nan_mean([np.mean(values) for values in per_target.values()]),
            # The published v1 numbers are medians over cases of each target, averaged.
            "dice_median_then_mean_over_targets": nan_mean([np.median(values) for values in per_target.values()]),
            "iou_mean_over_cases": nan_mean([row["iou"] for row in shown]),
        }
    known = [row for row in cases if row["existence"] is not None]
    if known:
        summary |= _existence(known)
        tables["existence"] = [_existence(known)]
    return {"summary": summary, "tables": tables, "cases": cases}


def _existence(rows) -> dict[str, float]:
    probability = [row["existence"] for row in rows]
    truth = np.array([row["present"] for row in rows])
    said = np.array(probability) > 0.5
    return presence_scores(probability, truth.tolist(), [row["painted"] for row in rows]) | {
        "positive": float(truth.mean()),
        "true_positive": float((said & truth).mean()),
        "false_positive": float((said & ~truth).mean()),
        "false_negative": float((~said & truth).mean()),
    }

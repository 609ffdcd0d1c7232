"""Scores of text-prompted masks: overlap per target and modality, and existence as a detection problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unimed.evaluation.cases import sample_row
from unimed.evaluation.matching import charged_to, match_regions
from unimed.evaluation.tables import means_by
from unimed.io.result import Prediction
from unimed.metrics.masks import nan_mean
from unimed.metrics.presence import presence_scores
from unimed.metrics.registered import metrics_of
from unimed.structures import Sample


def score_parsing(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict:
    """Compare regions by name (and by place where a name stands twice), whatever their order.

    A present target counts with its Dice, zero where nothing was predicted. A target that is not there has no Dice;
    what was predicted for it shows up in `false_mask_rate`, and so does a mask nobody asked for.

    Returns:
        "summary" (flat numbers), "tables" {name: rows} and "cases" (one row per sample and target). The fractions
        `positive`, `true_positive`, `false_positive`, `false_negative` are of all prompts, as BiomedParse prints them.
    """
    cases = []
    for sample, prediction in zip(samples, predictions, strict=True):
        cases += prompt_rows(sample, prediction)
    shown = [row for row in cases if row["present"]]
    summary = {"prompts": len(cases), "present": len(shown)}
    tables = {}
    if shown:
        tables["targets"] = means_by(shown, ["dimensions", "target"], list(metrics_of("mask")))
        tables["modalities"] = means_by(shown, "modality", list(metrics_of("mask")))
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
    known = [row for row in cases if row["presence"] is not None]
    if known:
        summary |= _existence(known)
        tables["existence"] = [_existence(known)]
    return {"summary": summary, "tables": tables, "cases": cases}


def prompt_rows(sample: Sample, prediction: Prediction) -> list[dict]:
    """One row per prompt whose answer is known, and one per additional mask (as of a target that is not there)."""
    targets = sample.labels.get("targets") or [region.phrase.lower() for region in sample.regions]
    names = {id(region): str(target) for region, target in zip(sample.regions, targets, strict=True)}
    rows = []
    for pair in match_regions(sample.regions, prediction.regions):
        true, found = pair.true, pair.predicted
        if true is None and (found.mask is None or not found.mask.any()):
            continue  # named and not shown
        if true is not None and true.mask is None and (true.presence is None or true.presence >= 0.5):
            continue  # nothing is known about it
        present = true is not None and true.mask is not None and bool(true.mask.any())
        mask = found.mask if found is not None else None
        prompt = (true or found).phrase
        row = sample_row(sample, "mask", names[id(true)] if true is not None else charged_to(found, sample.regions))
        row |= {"dimensions": next((m.ndim for m in (true.mask if true else None, mask) if m is not None), 2)}
        row |= {"prompt": prompt, "present": present, "presence": None if found is None else found.presence}
        row |= {
            "truth_voxels": int(true.mask.sum()) if present else 0,
            "predicted_voxels": int(mask.sum()) if mask is not None else 0,
            "answered": found is not None,
        }
        if found is None and (not prediction.regions or any(r.presence is not None for r in prediction.regions)):
            row["presence"] = 0.0  # a prompt without an answer: nothing was found
        if present:
            mask = mask if mask is not None else np.zeros_like(true.mask)
            row |= {name: one(mask, true.mask) for name, one in metrics_of("mask").items()}
        rows.append(row | ({"superfluous": True} if true is None else {}))
    return rows


def _existence(rows) -> dict[str, float]:
    probability = [row["presence"] for row in rows]
    truth = np.array([row["present"] for row in rows])
    found = np.array(probability) > 0.5
    return presence_scores(probability, truth.tolist(), [row["predicted_voxels"] for row in rows]) | {
        "positive": float(truth.mean()),
        "true_positive": float((found & truth).mean()),
        "false_positive": float((found & ~truth).mean()),
        "false_negative": float((~found & truth).mean()),
    }

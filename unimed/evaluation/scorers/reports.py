"""Scores of medical report grounding: phrases, boxes with zero, one or many per phrase, and what its
uncertainty is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.evaluation.cases import sample_row
from unimed.evaluation.matching import SAME_PHRASE, match_phrases, match_regions
from unimed.evaluation.published.umedground import ALIASES
from unimed.evaluation.rows import boxes_of, located_rows
from unimed.evaluation.tables import means_by
from unimed.io.result import Prediction
from unimed.metrics.boxes import accuracy_at, paired_iou, score_phrase, summarize_phrases
from unimed.metrics.calibration import box_uncertainty
from unimed.metrics.reliability import ece
from unimed.metrics.selective import aurc, selective_scores
from unimed.metrics.statistics import bootstrap_mean
from unimed.metrics.text import captions, normal_form, phrase_counts, phrase_f1
from unimed.structures import Region, Sample

_PHRASE_COLUMNS = (
    "phrase_exact_f1_micro", "phrase_words_f1_micro", "phrase_iou_f1_micro",
    "bleu_1", "bleu_4", "meteor_exact", "rouge_l", "cider_d",
)  # fmt: skip


def score_reports(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    protocol: str = "free",
    compat: str | None = None,
    train: Sequence[Sample] = (),
) -> dict:
    """Compare answers with samples.

    Args:
        protocol: "free" or "teacher"; said in every table, because the two must not be compared.
        train: training samples; put the mean box baseline beside the scores: the median training box of the same
            phrase, as fractions of the image, pasted without looking at it.
        compat: "reference" adds the published table: the first box of each sample alone, shares called AP.

    Returns:
        "summary", "tables" and "cases"; the rows of cases are what `tools/calibrate.py` reads.
    """
    cases, phrases, counts = [], [], {"exact": [], "words": [], "iou": []}
    predicted, truth = [], []
    for sample, prediction in zip(samples, predictions, strict=True):
        pairs = pair_phrases(sample, prediction)
        for phrase, true, found in pairs:
            row = score_phrase(boxes_of(found), boxes_of(true))
            phrases.append(sample_row(sample, "phrase", phrase, **row))
            cases += located_rows(sample, phrase, true, found)
        located = [region for region in sample.regions if region.box_xyxy_px is not None]
        pointed = [region for region in prediction.regions if region.box_xyxy_px is not None]
        names, others = [r.phrase for r in pointed], [r.phrase for r in located]
        counts["exact"].append(phrase_counts(names, others))
        counts["words"].append(phrase_counts(names, others, token_f1_at_least=SAME_PHRASE))
        counts["iou"].append(
            phrase_counts(
                names, others, [r.box_xyxy_px for r in pointed], [r.box_xyxy_px for r in located],
                token_f1_at_least=SAME_PHRASE,
            )
        )  # fmt: skip
        if names or others:
            # Nothing to be seen and nothing predicted is right, but there are no words to compare.
            # In the order of the truth: a report may name its findings in any.
            ordered = [pair.predicted.phrase for pair in match_regions(located, pointed) if pair.predicted is not None]
            predicted.append(". ".join(dict.fromkeys(ordered)))
            truth.append(". ".join(dict.fromkeys(others)))
    if train:
        _add_mean_boxes(cases, train)
    ious = [row["iou"] for row in cases]
    summary = {"protocol": protocol, "reports": len(samples), "boxes": len(cases)}
    summary |= accuracy_at(ious) | summarize_phrases(phrases)
    for name, rows in counts.items():
        summary |= {key.replace("phrase_", f"phrase_{name}_"): value for key, value in phrase_f1(rows).items()}
    if protocol == "free" and predicted:
        # Teacher-forced phrases are the truth's own: comparing them with the truth says nothing.
        summary |= captions(predicted, truth)
    uncertainties = uncertainty_scores(cases)
    summary |= {name: getattr(value, "value", value) for name, value in uncertainties.items()}
    columns = ("iou", "mean_box_iou") if train else ("iou",)
    tables = {"boxes": means_by(cases, "target", columns) if cases else [], "summary": [_overall(cases, protocol)]}
    tables["phrases"] = [{"protocol": protocol} | {k: v for k, v in summary.items() if k in _PHRASE_COLUMNS}]
    tables["boxes per phrase"] = [
        {
            "true boxes": name,
            "phrases": summary[f"phrases_{name}"],
            "miou": summary[f"miou_mean_over_phrases_{name}"],
            "false_box_rate": summary["false_box_rate"] if name == "zero" else None,
        }
        for name in ("zero", "one", "many")
    ]
    if uncertainties:
        tables["uncertainty"] = [uncertainties]
    if compat == "reference":
        firsts = first_box_ious(samples, predictions)
        named = accuracy_at(firsts)
        tables["published"] = [{alias: named[name] for alias, name in ALIASES.items()} | {"protocol": protocol}]
        summary |= {f"published_{alias}": named[name] for alias, name in ALIASES.items()}
    return {
        "summary": summary,
        "tables": {name: rows for name, rows in tables.items() if rows},
        "cases": cases + phrases,
    }


def _overall(cases, protocol: str) -> dict:
    ious = [row["iou"] for row in cases]
    groups = [row["group"] for row in cases]
    row = {"protocol": protocol, "boxes": len(cases), "patients": len(set(groups))}
    if not cases:
        return row
    row["miou"] = bootstrap_mean(ious, groups=groups)
    if "mean_box_iou" in cases[0]:
        row["mean_box_miou"] = bootstrap_mean([case["mean_box_iou"] for case in cases], groups=groups)
    for threshold in (0.1, 0.3, 0.5):
        hits = [float(iou >= threshold) for iou in ious]
        row[f"acc_at_{round(100 * threshold)}"] = bootstrap_mean(hits, groups=groups)
    return row


def _add_mean_boxes(cases: Sequence[dict], train: Sequence[Sample]) -> None:
    """`mean_box_iou` of every case: what the phrase alone gives; 0 for a phrase training does not hold."""
    known: dict[str, list] = {}
    for sample in train:
        height, width = sample.images[0].shape[:2]
        for region in sample.regions:
            if region.box_xyxy_px is not None:
                fraction = np.array(region.box_xyxy_px) / [width, height, width, height]
                known.setdefault(normal_form(region.phrase), []).append(fraction)
    for case in cases:
        boxes = known.get(normal_form(case["target"]))
        case["mean_box_iou"] = 0.0
        if boxes:
            height, width = case["image_size_hw"]
            middle = np.median(boxes, axis=0) * [width, height, width, height]
            case["mean_box_iou"] = float(paired_iou([middle], [case["true_box_xyxy_px"]])[0])


def pair_phrases(sample: Sample, prediction: Prediction) -> list[tuple[str, list[Region], list[Region]]]:
    """(phrase, true regions with a box, predicted regions) for every phrase of the truth; see `match_phrases`.

    A prediction that belongs to no phrase is left to the phrase scores.
    """
    located = [region for region in prediction.regions if region.box_xyxy_px is not None]
    return [
        (phrase, [region for region in true if region.box_xyxy_px is not None], found)
        for phrase, true, found in match_phrases(sample.regions, located)[0]
    ]


box_cases = located_rows


def uncertainty_scores(cases: Sequence[dict]) -> dict[str, float]:
    """AURC, AUGRC and so on of the spread (or 1 - confidence) of found boxes, and ECE of their confidence."""
    rows = [row for row in cases if row["predicted_box_xyxy_px"] is not None]
    spread = [row for row in rows if row.get("box_std_px")]
    scores: dict[str, float] = {}
    if len(spread) >= 5:
        sigma = np.array([row["box_std_px"] for row in spread])
        uncertainty = box_uncertainty(sigma, np.array([row["predicted_box_xyxy_px"] for row in spread]))
        risk = 1 - np.array([row["iou"] for row in spread])
        groups = [row["group"] for row in spread]
        scores |= {
            f"uncertainty_{k}": v for k, v in selective_scores(uncertainty, risk, groups=groups, resamples=200).items()
        }
    confident = [row for row in rows if row.get("confidence") is not None]
    if len(confident) >= 5:
        scores["ece_at_50"] = ece([r["confidence"] for r in confident], [float(r["iou"] >= 0.5) for r in confident])
    return scores


def first_box_ious(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[float]:
    """IoU of the first predicted with the first true box of each sample, whatever their phrases; 0 without a box."""
    ious = []
    for sample, prediction in zip(samples, predictions, strict=True):
        true = [r.box_xyxy_px for r in sample.regions if r.box_xyxy_px is not None][:1]
        found = [r.box_xyxy_px for r in prediction.regions if r.box_xyxy_px is not None][:1]
        if true:
            ious.append(float(paired_iou(found, true)[0]) if found else 0.0)
    return ious


def disturbed_scores(cases: Sequence[dict]) -> dict[str, float]:
    """mIoU, AURC, ECE and coverage of outer boxes of one disturbance; NaN where they cannot be had."""
    ious = [row["iou"] for row in cases]
    scores = {"miou": float(np.mean(ious)) if ious else float("nan")}
    uncertainties = uncertainty_scores(cases)
    spread = [row for row in cases if row["predicted_box_xyxy_px"] is not None and row.get("box_std_px")]
    scores["aurc"] = float("nan")
    if len(spread) >= 5:
        sigma = np.array([row["box_std_px"] for row in spread])
        uncertainty = box_uncertainty(sigma, np.array([row["predicted_box_xyxy_px"] for row in spread]))
        scores["aurc"] = aurc(uncertainty, 1 - np.array([row["iou"] for row in spread]))
    scores["ece_at_50"] = uncertainties.get("ece_at_50", float("nan"))
    inside = [row["inside_outer"] for row in cases if row.get("inside_outer") is not None]
    scores["coverage"] = float(np.mean(inside)) if inside else float("nan")
    return scores

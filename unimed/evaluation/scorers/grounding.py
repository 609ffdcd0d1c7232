"""Scores of grounded answers, kind of question by kind of question, beside what no model is needed for."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from unimed.evaluation.baselines import copy_baseline
from unimed.evaluation.tables import means_by
from unimed.io.result import Prediction
from unimed.metrics.boxes import score_phrase, summarise_phrases
from unimed.metrics.masks import dice, iou
from unimed.metrics.presence import presence_scores
from unimed.metrics.text import captions, normal_form
from unimed.structures import Region, Sample


def score_grounding(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    train: Sequence[Sample] = (),
    blind: Sequence[Prediction] | None = None,
) -> dict:
    """Compare answers with samples.

    Args:
        samples: with `labels["task"]`.
        predictions: one per sample.
        train: training samples; enable the copy baseline (best training mask of the same phrase, pasted without
            looking at the image: an upper bound of what position alone gives) and the majority baseline.
        blind: predictions on black images for the samples of tasks vqa and classification, in their order: the
            language-only baseline.

    Returns:
        "summary" (flat numbers), "tables" {name: rows} and "cases" (one row per case and target).
    """
    cases: list[dict] = []
    by_task = defaultdict(list)
    for sample, prediction in zip(samples, predictions, strict=True):
        by_task[sample.labels.get("task", "")].append((sample, prediction))
    tables, summary = {}, {}
    masks = _mask_rows(samples, predictions, train)
    if masks:
        cases += masks
        tables["masks"] = means_by(masks, ["task", "target"], ["dice", "iou"] + ["copy_baseline_dice"] * bool(train))
        named = [row for row in tables["masks"] if row["task"] == "referring"]
        for row in named:
            summary[f"dice/{row['target']}"] = row["dice"].value
        if named:
            summary["dice_mean_over_targets"] = float(np.mean([row["dice"].value for row in named]))
    asked = [p for s, p in zip(samples, predictions, strict=True) if _something_to_point_at(s)]
    if asked:
        # 0 means that the model answers without ever emitting [SEG] or [BOX]; the engine warns of it while training.
        summary["grounding_rate"] = float(np.mean([bool(p.regions) for p in asked]))
    boxes = _box_rows(samples, predictions)
    if boxes:
        cases += boxes
        summary |= summarise_phrases(boxes)
        tables["boxes"] = means_by(boxes, "target", ("miou",))
    there = _presence_rows(samples, predictions)
    if there:
        cases += there
        scores = presence_scores(
            [row["probability"] for row in there],
            [row["present"] for row in there],
            [row["painted"] for row in there],
        )
        summary |= scores
        tables["presence"] = [scores]
    answers = _answer_rows(by_task, train, samples, blind)
    if answers:
        cases += answers
        columns = ["correct"] + ["majority_baseline"] * bool(train)
        columns += ["language_only"] * any("language_only" in row for row in answers)
        tables["answers"] = means_by(answers, "task", columns)
        for row in tables["answers"]:
            summary[f"accuracy/{row['task']}"] = row["correct"].value
    for task in ("caption", "report", "region"):
        pairs = by_task.get(task, [])
        if pairs:
            said = [_words(prediction.text) for _, prediction in pairs]
            truth = [_words(_plain(sample.conversation[1][1])) for sample, _ in pairs]
            scores = captions(said, truth)
            tables.setdefault("texts", []).append({"task": task, "cases": len(pairs)} | scores)
            summary |= {f"{name}/{task}": value for name, value in scores.items()}
            cases += [
                {"kind": "text", "case_id": sample.sample_id, "task": task, "said": prediction.text, "truth": text}
                for (sample, prediction), text in zip(pairs, truth, strict=True)
            ]
    return {"summary": summary, "tables": tables, "cases": cases}


def _something_to_point_at(sample: Sample) -> bool:
    present = [region for region in sample.regions if region.presence is None or region.presence >= 0.5]
    return bool(present) and sample.labels.get("task") != "region"


def _mask_rows(samples, predictions, train):
    # Slices are copied onto slices and volumes onto volumes.
    stock = defaultdict(list)
    for sample in train:
        for region in sample.regions:
            if region.mask is not None and region.mask.any():
                stock[region.phrase.lower(), region.mask.ndim].append(region.mask)
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        if sample.labels.get("task") == "region":
            continue  # its mask was given with the question
        found = [region for region in prediction.regions if region.mask is not None]
        truth = [region for region in sample.regions if region.mask is not None and region.mask.any()]
        for region in truth:
            guess = _of_phrase(found, region.phrase, len(truth) == 1)
            mask = guess.mask if guess is not None else np.zeros_like(region.mask)
            row = {
                "kind": "mask",
                "case_id": sample.sample_id,
                "group": _group(sample),
                "task": sample.labels.get("task", ""),
                "target": region.phrase.lower(),
                "dice": dice(mask, region.mask),
                "iou": iou(mask, region.mask),
                "answered": guess is not None,
            }
            if train:
                masks = stock[region.phrase.lower(), region.mask.ndim]
                row["copy_baseline_dice"] = copy_baseline(masks, region.mask)[2] if masks else 0.0
            rows.append(row)
    return rows


def _of_phrase(found: list[Region], phrase: str, only: bool) -> Region | None:
    for region in found:
        if normal_form(region.phrase) == normal_form(phrase):
            return region
    # One thing was asked and one was shown: its name in the answer does not matter.
    return found[0] if only and found else None


def _box_rows(samples, predictions):
    """Per phrase: matched IoU, where a superfluous box costs as much as a missed one."""
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        if sample.labels.get("task") != "box":
            continue
        truth = [region.box_xyxy_px for region in sample.regions if region.box_xyxy_px is not None]
        found = [region.box_xyxy_px for region in prediction.regions if region.box_xyxy_px is not None]
        rows.append(
            {
                "kind": "box",
                "case_id": sample.sample_id,
                "group": _group(sample),
                "target": sample.regions[0].phrase.lower() if sample.regions else "",
                "predicted_boxes": found,
                "true_boxes": truth,
                **score_phrase(found, truth),
            }
        )
    return rows


def _group(sample: Sample) -> str:
    """The patient as a number nobody can be found by."""
    return hashlib.sha256((sample.patient_id or sample.sample_id).encode()).hexdigest()[:12]


def _presence_rows(samples, predictions):
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        if sample.labels.get("task") not in ("referring", "absent"):
            continue
        regions = [region for region in sample.regions if region.presence is not None or region.mask is not None]
        if len(regions) != 1:
            continue
        present = regions[0].mask is not None and bool(regions[0].mask.any())
        found = [r for r in prediction.regions if r.presence is not None or r.mask is not None]
        painted = int(found[0].mask.sum()) if found and found[0].mask is not None else 0
        # A model without a presence head says by its mask that something is there. An answer that points at nothing
        # says that nothing is.
        probability = float(painted > 0) if found and found[0].presence is None else None
        rows.append(
            {
                "kind": "presence",
                "case_id": sample.sample_id,
                "target": regions[0].phrase.lower(),
                "present": present,
                "probability": probability if probability is not None else found[0].presence if found else 0.0,
                "painted": painted,
            }
        )
    return rows


def _answer_rows(by_task, train, samples, blind):
    majority = defaultdict(Counter)
    for sample in train:
        if len(sample.conversation) > 1:
            majority[_question_key(sample)][normal_form(_plain(sample.conversation[1][1]))] += 1
    blind_text = {}
    if blind is not None:
        asked = [sample for sample in samples if sample.labels.get("task") in ("vqa", "classification")]
        blind_text = {s.sample_id: p.text for s, p in zip(asked, blind, strict=True)}
    rows = []
    for task in ("vqa", "classification"):
        for sample, prediction in by_task.get(task, []):
            truth = normal_form(_plain(sample.conversation[1][1]))
            row = {
                "kind": "answer",
                "case_id": sample.sample_id,
                "group": _group(sample),
                "task": task,
                "said": prediction.text,
                "truth": truth,
                "correct": float(normal_form(prediction.text) == truth),
            }
            if train:
                most = majority[_question_key(sample)].most_common(1)
                row["majority_baseline"] = float(bool(most) and most[0][0] == truth)
            if sample.sample_id in blind_text:
                row["language_only"] = float(normal_form(blind_text[sample.sample_id]) == truth)
            rows.append(row)
    return rows


def _question_key(sample: Sample) -> str:
    """Questions of one wording share their usual answer."""
    return sample.conversation[0][1]


def _plain(text: str) -> str:
    for mark in ("<p>", "</p>", "[SEG]", "[BOX]"):
        text = text.replace(mark, " ")
    return " ".join(text.split())


def _words(text: str) -> str:
    return _plain(text).lower()

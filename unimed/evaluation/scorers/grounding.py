"""Scores of grounded answers per kind of question, beside baselines that need no model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from unimed.evaluation.baselines import copy_baseline
from unimed.evaluation.rows import (
    answer_of,
    answer_row,
    box_rows,
    mask_rows,
    presence_rows,
    question_of,
    text_row,
    without_markers,
)
from unimed.evaluation.tables import means_by
from unimed.io.result import Prediction
from unimed.metrics.boxes import summarize_phrases
from unimed.metrics.masks import nan_mean
from unimed.metrics.presence import presence_scores
from unimed.metrics.registered import metrics_of
from unimed.metrics.text import captions, exact_match
from unimed.structures import Sample


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
        columns = [*metrics_of("mask"), *["copy_baseline_dice"] * bool(train)]
        tables["masks"] = means_by(masks, ["task", "target"], columns)
        named = [row for row in tables["masks"] if row["task"] == "referring"]
        for row in named:
            summary[f"dice/{row['target']}"] = row["dice"].value
        summary["dice_mean_over_cases"] = nan_mean([row["dice"] for row in masks])
        summary["superfluous_masks"] = sum(bool(row.get("superfluous")) for row in masks)
        if named:
            summary["dice_mean_over_targets"] = float(np.mean([row["dice"].value for row in named]))
    asked = [p for s, p in zip(samples, predictions, strict=True) if _something_to_point_at(s)]
    if asked:
        # 0 means that the model answers without ever emitting [SEG] or [BOX]; the engine warns of it while training.
        summary["grounding_rate"] = float(np.mean([bool(p.regions) for p in asked]))
    boxes = _box_rows(samples, predictions)
    if boxes:
        cases += boxes
        summary |= summarize_phrases(boxes)
        tables["boxes"] = means_by(boxes, "target", ("miou",))
    there = _presence_rows(samples, predictions)
    if there:
        cases += there
        scores = presence_scores(
            [row["presence"] for row in there],
            [row["present"] for row in there],
            [row["predicted_voxels"] for row in there],
        )
        if not (scores["absent"] and scores["present"]):
            del scores["presence_accuracy"]  # always giving the same answer would be right
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
            rows = [text_row(sample, prediction) for sample, prediction in pairs]
            predicted = [without_markers(row["predicted"]) for row in rows]
            scores = captions(predicted, [row["truth"] for row in rows])
            tables.setdefault("texts", []).append({"task": task, "cases": len(pairs)} | scores)
            summary |= {f"{name}/{task}": value for name, value in scores.items()}
            cases += rows
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
        mine = mask_rows(sample, prediction)
        if train:
            truth = [region for region in sample.regions if region.mask is not None and region.mask.any()]
            for row, region in zip(mine, truth, strict=False):
                masks = stock[region.phrase.lower(), region.mask.ndim]
                row["copy_baseline_dice"] = copy_baseline(masks, region.mask)[2] if masks else 0.0
        rows += mine
    return rows


def _box_rows(samples, predictions):
    pairs = zip(samples, predictions, strict=True)
    return [row for sample, one in pairs if sample.labels.get("task") == "box" for row in box_rows(sample, one)]


def _presence_rows(samples, predictions):
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        if sample.labels.get("task") in ("referring", "absent"):
            rows += presence_rows(sample, prediction)
    return rows


def _answer_rows(by_task, train, samples, blind):
    majority = defaultdict(Counter)
    for sample in train:
        if len(sample.conversation) > 1:
            majority[question_of(sample)][answer_of(sample)] += 1
    blind_text = {}
    if blind is not None:
        asked = [sample for sample in samples if sample.labels.get("task") in ("vqa", "classification")]
        blind_text = {s.sample_id: p.text for s, p in zip(asked, blind, strict=True)}
    rows = []
    for task in ("vqa", "classification"):
        for sample, prediction in by_task.get(task, []):
            row, truth = answer_row(sample, prediction), answer_of(sample)
            if train:
                most = majority[question_of(sample)].most_common(1)
                row["majority_baseline"] = float(bool(most) and exact_match(most[0][0], truth))
            if sample.sample_id in blind_text:
                row["language_only"] = float(exact_match(blind_text[sample.sample_id], truth))
            rows.append(row)
    return rows

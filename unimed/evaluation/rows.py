"""A sample and the answer to it as rows of the schema: one function per kind of answer, used by every scorer.

Values of a row are those of the registered metrics of its kind, so that a new metric appears without another line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from unimed.evaluation.cases import sample_row
from unimed.evaluation.matching import charged_to, match_phrases, match_regions
from unimed.io.result import Prediction
from unimed.metrics.boxes import match, paired_iou, score_phrase
from unimed.metrics.conformal_regions import cover_distance
from unimed.metrics.registered import metrics_of
from unimed.metrics.text import exact_match, normal_form
from unimed.structures import Region, Sample
from unimed.tokens import BOX_TOKEN, PHRASE_END, PHRASE_START, SEG_TOKEN

#: Tasks whose answer is one of few words, and tasks whose answer is prose.
ANSWER_TASKS = ("vqa", "classification", "cls", "qa", "identify")
TEXT_TASKS = ("caption", "report", "region")
#: Tasks whose regions are given with the question and not asked for.
GIVEN_TASKS = ("region", "identify")


def question_of(sample: Sample) -> str:
    """The first question of a sample; "" where it has none."""
    return next((text for role, text in sample.conversation if role == "user"), "")


def answer_of(sample: Sample) -> str:
    """The first answer of a sample, without markers."""
    return without_markers(next((text for role, text in sample.conversation if role == "assistant"), ""))


def without_markers(text: str) -> str:
    """The words of an answer, single blanks."""
    for mark in (PHRASE_START, PHRASE_END, SEG_TOKEN, BOX_TOKEN):
        text = text.replace(mark, " ")
    return " ".join(text.split())


def mask_rows(sample: Sample, prediction: Prediction) -> list[dict]:
    """One row per true mask, and one with all values at their worst per additional mask.

    Samples whose truth holds no mask have no row: where an object is known to be absent, what was predicted for it is
    a question of `presence_rows`; where nothing is known, nothing can be said.
    """
    if sample.labels.get("task") in GIVEN_TASKS:
        return []
    true = [region for region in sample.regions if region.mask is not None and region.mask.any()]
    found = [region for region in prediction.regions if region.mask is not None]
    if not true:
        return []
    rows = []
    for pair in match_regions(true, found, question_of(sample)):
        if pair.true is not None:
            mask = pair.predicted.mask if pair.predicted is not None else np.zeros_like(pair.true.mask)
            rows.append(
                sample_row(
                    sample,
                    "mask",
                    pair.true.phrase,
                    **{name: one(mask, pair.true.mask) for name, one in metrics_of("mask").items()},
                    truth_voxels=int(pair.true.mask.sum()),
                    predicted_voxels=int(mask.sum()),
                    answered=pair.predicted is not None,
                    **_certainty(pair.predicted, pair.true),
                )
            )
        elif pair.predicted.mask.any():
            worst = {name: one.range[one.better == "lower"] for name, one in metrics_of("mask").items()}
            size = {"truth_voxels": 0, "predicted_voxels": int(pair.predicted.mask.sum())}
            target = charged_to(pair.predicted, true)
            rows.append(sample_row(sample, "mask", target, **worst, **size, answered=True, superfluous=True))
    return rows


def _certainty(predicted: Region | None, true: Region) -> dict:
    """What a calibration of masks learns from: the stated confidence, and how far a 2D mask is from covering."""
    if predicted is None or true.mask.ndim != 2:
        return {}
    found = {"cover_95_px": cover_distance(predicted.mask, true.mask)}
    return found if predicted.confidence is None else found | {"confidence": float(predicted.confidence)}


def box_rows(sample: Sample, prediction: Prediction) -> list[dict]:
    """One row per true phrase: matched IoU, where a missed, a superfluous and a wrongly named box cost."""
    located = [region for region in prediction.regions if region.box_xyxy_px is not None]
    phrases, left = match_phrases(sample.regions, located, question_of(sample))
    further = Counter(normal_form(charged_to(region, sample.regions)) for region in left)
    if not phrases and left:
        phrases, further = [(left[0].phrase, [], [])], Counter({normal_form(left[0].phrase): len(left)})
    rows = []
    for phrase, true, found in phrases:
        row = score_phrase(boxes_of(found), boxes_of(true))
        if additional := further[normal_form(phrase)]:
            # Boxes under another name meet nothing, wherever they lie.
            most = max(row["predicted_boxes"], row["true_boxes"])
            row["predicted_boxes"] += additional
            row["miou"] *= most / max(row["predicted_boxes"], row["true_boxes"])
        boxes = {"predicted_boxes_xyxy_px": boxes_of(found), "true_boxes_xyxy_px": boxes_of(true)}
        rows.append(sample_row(sample, "box", phrase, **row, **boxes))
    return rows


def boxes_of(regions: Sequence[Region]) -> list[tuple]:
    """The boxes of those regions that have one."""
    return [region.box_xyxy_px for region in regions if region.box_xyxy_px is not None]


def located_rows(sample: Sample, phrase: str, true: Sequence[Region], found: Sequence[Region]) -> list[dict]:
    """One row per true box of a phrase with the predicted box that belongs to it; what a calibration learns from."""
    predicted = boxes_of(found)
    partner = {j: found[i] for i, j, _ in match(predicted, boxes_of(true))}
    if len(true) == 1 and len(found) == 1:
        # One was asked for and one was shown: they belong together even without overlap.
        partner = {0: found[0]}
    size = sample.images[0].shape[:2]
    return [located_row(sample, phrase, index, region, partner.get(index), size) for index, region in enumerate(true)]


def located_row(
    sample: Sample, phrase: str, index: int, true: Region, predicted: Region | None, image_size_hw: Sequence[int]
) -> dict:
    """A true box (or the box of a 2D mask), the predicted one or None, and what the model said of its certainty."""
    true_box, box = box_of(true), box_of(predicted)
    row = sample_row(
        sample,
        "box",
        iou=float(paired_iou([box], [true_box])[0]) if box and true_box else 0.0,
        true_box_xyxy_px=true_box,
        predicted_box_xyxy_px=box,
        image_size_hw=[int(v) for v in image_size_hw],
        answered=box is not None,
    )
    row |= {"case": f"{sample.sample_id}/{phrase}/{index}", "target": phrase}
    if predicted is not None and predicted.confidence is not None:
        row["confidence"] = float(predicted.confidence)
    if predicted is not None and predicted.box_std_px is not None:
        row["box_std_px"] = [float(v) for v in predicted.box_std_px]
    return row


def box_of(region: Region | None) -> list[float] | None:
    """The box of a region, or that around its 2D mask; None where it has neither."""
    if region is None:
        return None
    if region.box_xyxy_px is not None:
        return [float(v) for v in region.box_xyxy_px]
    if region.mask is None or region.mask.ndim != 2 or not region.mask.any():
        return None
    rows, columns = np.nonzero(region.mask)
    return [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]


def presence_rows(sample: Sample, prediction: Prediction) -> list[dict]:
    """One row per asked object: is it there, how sure is the model that it is, and how much was shown for it.

    A model without a presence head says by its mask (or box) that something is there, and by pointing at nothing that
    nothing is. Where a single object was asked for, everything that is shown is an answer to it.
    """
    asked = [region for region in sample.regions if _is_absent(region) or _has_mask(region) or region.presence]
    if not asked or sample.labels.get("task") in GIVEN_TASKS:
        return []
    found = [r for r in prediction.regions if r.presence is not None or r.mask is not None or r.box_xyxy_px is not None]
    partners = {id(p.true): [p.predicted] if p.predicted is not None else []
                for p in match_regions(asked, found, question_of(sample)) if p.true is not None}  # fmt: skip
    rows = []
    for region in asked:
        shown = found if len(asked) == 1 else partners[id(region)]
        size = max((_size(one) for one in shown), default=0)
        presences = [float(_size(one) > 0) if one.presence is None else one.presence for one in shown]
        rows.append(
            sample_row(
                sample,
                "presence",
                region.phrase,
                present=not _is_absent(region),
                presence=max(presences, default=0.0),
                predicted_voxels=size,
            )
        )
    return rows


def _has_mask(region: Region) -> bool:
    return region.mask is not None and bool(region.mask.any())


def _is_absent(region: Region) -> bool:
    """Known not to be there: said so, or an empty mask."""
    if region.mask is not None:
        return not region.mask.any()
    return region.presence is not None and region.presence < 0.5


def _size(region: Region) -> int:
    """Pixels or voxels shown; a box without a mask shows its area."""
    if region.mask is not None:
        return int(region.mask.sum())
    if region.box_xyxy_px is None:
        return 0
    x1, y1, x2, y2 = region.box_xyxy_px
    return max(1, round((x2 - x1) * (y2 - y1)))


def answer_row(sample: Sample, prediction: Prediction) -> dict:
    """The answer to a question beside the right one."""
    predicted, truth = without_markers(prediction.text), answer_of(sample)
    return sample_row(
        sample,
        "answer",
        correct=float(exact_match(predicted, truth)),
        **{name: one(predicted, truth) for name, one in metrics_of("text").items()},
        predicted=prediction.text,
        truth=normal_form(truth),
    )


def text_row(sample: Sample, prediction: Prediction) -> dict:
    """A described image beside its description."""
    predicted, truth = without_markers(prediction.text), answer_of(sample)
    return sample_row(
        sample,
        "text",
        **{name: one(predicted, truth) for name, one in metrics_of("text").items()},
        predicted=prediction.text,
        truth=truth,
    )


def rows_of(sample: Sample, prediction: Prediction) -> list[dict]:
    """All rows a sample gives: whatever its truth holds is compared."""
    rows = mask_rows(sample, prediction)
    located = [region for region in sample.regions if region.box_xyxy_px is not None and region.mask is None]
    boxes_only = [r for r in prediction.regions if r.box_xyxy_px is not None and r.mask is None]
    if located or (boxes_only and not any(_has_mask(region) for region in sample.regions)):
        rows += box_rows(sample, prediction)
    rows += presence_rows(sample, prediction)
    if sample.labels.get("task") in ANSWER_TASKS and answer_of(sample):
        rows.append(answer_row(sample, prediction))
    elif sample.labels.get("task") in TEXT_TASKS and answer_of(sample):
        rows.append(text_row(sample, prediction))
    return rows

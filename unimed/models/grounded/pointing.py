"""From the markers of an answer to regions: masks, boxes, presence, and boxes that guide masks."""

from __future__ import annotations

import itertools

import numpy as np

from unimed.data.canonical import box_of_mask
from unimed.models.grounded.processing import asked_phrase
from unimed.structures import Region
from unimed.tokens import SEG_TOKEN


def guides(answer, boxes) -> dict[int, tuple]:
    """{number of a [SEG]: box} of an answer that points at one phrase by a [SEG] and one [BOX] beside it."""
    found, seg, box = {}, 0, 0
    numbered = []
    for target in answer.targets:
        if target.box_fraction is None:
            is_seg = target.token == SEG_TOKEN
            numbered.append((target, is_seg, seg if is_seg else box))
            seg, box = seg + is_seg, box + (not is_seg)
    for (one, one_seg, one_number), (other, other_seg, other_number) in itertools.pairwise(numbered):
        if one_seg != other_seg and one.span == other.span and one.phrase == other.phrase:
            mask, place = (one_number, other_number) if one_seg else (other_number, one_number)
            if place < len(boxes):
                x1, y1, x2, y2 = boxes[place][0]
                if x2 > x1 and y2 > y1:
                    found.setdefault(mask, (x1, y1, x2, y2))
    return found


def pointed_at(answer, text, size, logits, iou, presence, boxes, threshold) -> list[Region]:
    """The regions of an answer in the order of its markers.

    Args:
        logits, iou, presence: of its [SEG], in pixels of the image; boxes: of its [BOX].
        threshold: what is less probable to be there gets an empty mask.
    """
    regions, seg, box = [], 0, 0
    for target in answer.targets:
        phrase, span = target.phrase or asked_phrase(text), target.span
        if target.box_fraction is not None:
            height, width = size
            place = tuple(v * side for v, side in zip(target.box_fraction, (width, height) * 2, strict=True))
            regions.append(Region(phrase, box_xyxy_px=place, phrase_span=span))
            continue
        if target.token == SEG_TOKEN:
            if seg >= len(logits):
                continue
            there = None if presence is None else float(presence[seg])
            mask = (logits[seg] > 0).cpu().numpy()
            if there is not None and there < threshold:
                mask = np.zeros_like(mask)
            remark = ""
            if there is not None and (there >= 0.5) != (there >= threshold):
                remark = f"presence {there:.2f}; masks are shown from {threshold:.3g} on"
            regions.append(
                Region(phrase, mask=mask, presence=there, confidence=_unit(float(iou[seg])), phrase_span=span,
                       box_xyxy_px=box_of_mask(mask), remark=remark)
            )  # fmt: skip
            seg += 1
        elif box < len(boxes):
            (x1, y1, x2, y2), std, probability = boxes[box]
            if x2 > x1 and y2 > y1:
                regions.append(
                    Region(phrase, box_xyxy_px=(x1, y1, x2, y2), confidence=_unit(probability), box_std_px=std,
                           phrase_span=span)
                )  # fmt: skip
            box += 1
    return regions


def _unit(value: float) -> float:
    return float(min(1.0, max(0.0, value)))

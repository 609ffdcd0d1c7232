"""Boxes that a user gives: whether they lie on the image, and the surroundings a decoder is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.structures import Region


def window_around(box, zoom: float, width: int, height: int) -> tuple[int, int, int, int]:
    """A square `zoom` times as large as the longer side of the box, moved into the image (x1, y1, x2, y2 in pixels)."""
    side = int(np.ceil(max(box[2] - box[0], box[3] - box[1]) * zoom))
    window = []
    for low, high, limit in ((box[0], box[2], width), (box[1], box[3], height)):
        length = min(side, limit)
        start = int(np.clip(round((low + high - length) / 2), 0, limit - length))
        window.append((start, start + length))
    (left, right), (top, bottom) = window
    return left, top, right, bottom


def box_around(mask: np.ndarray, slack_px: float = 3) -> tuple[float, float, float, float]:
    """The box of a mask (bool [H, W], not empty) in pixels, with slack as LiteMedSAM was evaluated, cut at the border.

    Args:
        slack_px: to each side, where the longer side of the image has 256 pixels.
    """
    height, width = mask.shape
    slack = slack_px * max(height, width) / 256
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        max(0.0, float(columns[0] - slack)),
        max(0.0, float(rows[0] - slack)),
        min(float(width), float(columns[-1] + 1 + slack)),
        min(float(height), float(rows[-1] + 1 + slack)),
    )


def box_within(phrase: str, box: Sequence, width: int, height: int) -> tuple:
    """The box as it is, if it is four numbers and some of it lies on the image.

    Raises:
        ValueError: it is not, or lies outside.
    """
    box = tuple(box)
    if len(box) != 4:
        raise ValueError(f"region {phrase!r}: a box is (left, top, right, bottom) in pixels, got {box}")
    left, top, right, bottom = box
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise ValueError(f"region {phrase!r}: box {box} lies outside the image of {width} x {height} pixels")
    return box


def regions_of_boxes(boxes_xyxy_px: Sequence, phrases: Sequence[str], width: int, height: int) -> list[Region]:
    """The boxes as regions with a phrase each; without phrases they are numbered.

    Raises:
        ValueError: no box, another number of phrases, or a box that is not four finite numbers, has no area or lies
            outside the image.
    """
    if len(boxes_xyxy_px) and np.ndim(boxes_xyxy_px[0]) == 0:
        raise ValueError("give a list of boxes, [(left, top, right, bottom), ...], also for one")
    phrases = list(phrases) or [f"box {number + 1}" for number in range(len(boxes_xyxy_px))]
    regions = [
        Region(phrase, box_xyxy_px=box_within(phrase, box, width, height))
        for phrase, box in zip(phrases, boxes_xyxy_px, strict=True)
    ]
    if not regions:
        raise ValueError("no box to cut out; give at least one (left, top, right, bottom) in pixels of the image")
    return regions

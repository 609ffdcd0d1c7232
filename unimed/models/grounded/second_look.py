"""A second look: the model looks again at a crop around what it pointed at, as long as that changes something.

What is small in a large image is a few cells of what the model sees; around its own box it is many. Looking again ends
at once where nothing was pointed at or the crop would be the whole image, when two looks agree, when the second one
loses what the first had found, and after `rounds` looks in all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimed.data.canonical import box_of_mask
from unimed.io.boxes_given import window_around
from unimed.io.images import load as load_image
from unimed.io.result import Prediction
from unimed.structures import Region

#: Question about a crop; the phrase is the model's own.
QUESTION = "Segment the {}."


@dataclass(frozen=True)
class Look:
    """One further look at one region: its number, the window (x1, y1, x2, y2) in pixels, and why looking ended there
    ("" where it went on)."""

    region: int
    window: tuple[int, int, int, int]
    ended: str


def look_again(
    model,
    image,
    text: str,
    *,
    rounds: int = 2,
    zoom: float = 2.0,
    agree: float = 0.9,
    question: str = QUESTION,
    site: str = "",
    looks: list[Look] | None = None,
    **options,
) -> Prediction:
    """Answer a question about an image, looking again at crops around what the answer points at.

    Args:
        image, text: see `Predictor.predict`; a 2D image and one question.
        rounds: looks in all, the first one included; 1 is `predict`.
        zoom: side of a crop over the longer side of the region's box.
        agree: IoU of two looks from which on they agree and looking ends.
        question: what is asked about a crop, `{}` is the phrase of the region.
        looks: gets what was looked at, if a list is given.
        options: of `predict`.

    Returns:
        the first answer with the masks and boxes of the last look; `timing_s["second_look"]` is what it cost.

    Raises:
        ValueError: `rounds` below 1, `zoom` not above 1, or a question without `{}`.
    """
    if rounds < 1 or zoom <= 1 or "{}" not in question:
        raise ValueError(f"look_again needs rounds >= 1, zoom > 1 and a question with {{}}, got {rounds}, {zoom}")
    source = load_image(image, site=site)
    first = model.predict(source, text, **options)
    begin = time.perf_counter()
    regions, looks = list(first.regions), [] if looks is None else looks
    open_ones = [number for number, region in enumerate(regions) if _box(region) is not None]
    for _ in range(rounds - 1):
        windows = {number: window_around(_box(regions[number]), zoom, *_size(source)) for number in open_ones}
        for number in [n for n, window in windows.items() if _whole(window, *_size(source))]:
            looks.append(Look(number, windows.pop(number), "the crop would be the whole image"))
        if not windows:
            break
        crops = [np.ascontiguousarray(source.rgb[y1:y2, x1:x2]) for x1, y1, x2, y2 in windows.values()]
        asked = [question.replace("{}", regions[number].phrase) for number in windows]
        answers = model.predict_batch(crops, asked, **options)
        open_ones = []
        for (number, window), answer in zip(windows.items(), answers, strict=True):
            found = _moved(answer.regions, window, regions[number], _size(source))
            overlap = 0.0 if found is None else _overlap(found, regions[number])
            ended = "nothing was found in the crop" if found is None else "looks agree" if overlap >= agree else ""
            looks.append(Look(number, window, ended))
            if found is not None:
                regions[number] = found
            if not ended:
                open_ones.append(number)
    timing = {**first.timing_s, "second_look": time.perf_counter() - begin}
    return replace(first, regions=tuple(regions), timing_s=timing)


def _size(source) -> tuple[int, int]:
    height, width = source.rgb.shape[:2]
    return width, height


def _box(region: Region) -> tuple | None:
    """Where a region lies; None where nothing is shown for it."""
    if region.mask is not None:
        return box_of_mask(region.mask)
    return region.box_xyxy_px


def _whole(window: Sequence[int], width: int, height: int) -> bool:
    return (window[2] - window[0]) * (window[3] - window[1]) >= 0.8 * width * height


def _moved(found: Sequence[Region], window, before: Region, size) -> Region | None:
    """The region of a crop that shows most, in pixels of the image and under its former name."""
    shown = [region for region in found if _box(region) is not None and (region.mask is None) == (before.mask is None)]
    if not shown:
        return None
    best = max(shown, key=lambda region: region.presence if region.presence is not None else region.confidence or 0.0)
    (x1, y1, x2, y2), (width, height), mask = window, size, None
    if best.mask is not None:
        mask = np.zeros((height, width), dtype=bool)
        mask[y1:y2, x1:x2] = best.mask
    left, top, right, bottom = _box(best)
    std = best.box_std_px
    return replace(
        before, mask=mask, box_xyxy_px=(left + x1, top + y1, right + x1, bottom + y1), confidence=best.confidence,
        box_std_px=std, box_outer_xyxy_px=None, box_inner_xyxy_px=None,
    )  # fmt: skip


def _overlap(one: Region, other: Region) -> float:
    if one.mask is not None and other.mask is not None:
        return float((one.mask & other.mask).sum() / max(1, (one.mask | other.mask).sum()))
    (a1, b1, a2, b2), (c1, d1, c2, d2) = one.box_xyxy_px, other.box_xyxy_px
    shared = max(0.0, min(a2, c2) - max(a1, c1)) * max(0.0, min(b2, d2) - max(b1, d1))
    return shared / ((a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - shared)

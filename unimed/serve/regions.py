"""Regions on the way to callers and back: plain objects of JSON, in pixels of the original image."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unimed.io.codes import code_phrase
from unimed.io.result import Prediction, contradiction
from unimed.io.rle import compress_counts, decode_mask, encode_mask
from unimed.serve.problems import Problem
from unimed.structures import Region

#: How a question names a region of an earlier turn.
_NAMED = re.compile(r"@(r\d+)\b")
_MOST_REGIONS = 32
#: Run lengths of a few bytes may stand for any number of pixels.
_MOST_PIXELS = 2**24


def regions_to_json(prediction: Prediction, *, masks: bool = True, first: int = 1) -> list[dict[str, Any]]:
    """One object per region, in the order of the text; ids count on from `first`."""
    return [_to_json(region, f"r{number}", masks) for number, region in enumerate(prediction.regions, first)]


def _to_json(region: Region, id_: str, masks: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": id_, "phrase": region.phrase,
        "phrase_span": None if region.phrase_span is None else list(region.phrase_span),
        "image_index": 0, "frame": None,
        "box_xyxy": None if region.box_xyxy_px is None else [float(v) for v in region.box_xyxy_px],
        "presence": region.presence,
    }  # fmt: skip
    confidence: dict[str, Any] = {}
    if region.confidence is not None:
        confidence["mask" if region.mask is not None else "box"] = float(region.confidence)
    if region.box_std_px is not None:
        confidence["box_std_px"] = [float(v) for v in region.box_std_px]
    values["confidence"] = confidence or None
    mask = region.mask
    if mask is not None:
        values["voxels" if mask.ndim == 3 else "pixels"] = int(mask.sum())
        if values["box_xyxy"] is None and mask.ndim == 2:
            values["box_xyxy"] = box_of(mask)
        if masks:
            runs = encode_mask(mask)
            values["mask"] = {"format": "coco_rle", "size": runs["size"], "counts": compress_counts(runs["counts"])}
    values["label"] = _label(region.phrase)
    if remark := region.remark or contradiction(region):
        values["remark"] = remark
    return values


@functools.lru_cache(maxsize=1024)
def _coded(phrase: str) -> tuple[str, str, str] | None:
    try:
        coding = code_phrase(phrase)
    except ValueError:
        return None
    return coding.type.scheme, coding.type.value, coding.type.meaning


def _label(phrase: str) -> dict[str, str] | None:
    found = _coded(phrase[:500])
    return None if found is None else dict(zip(("scheme", "value", "meaning"), found, strict=True))


def box_of(mask: np.ndarray) -> list[float] | None:
    """Box xyxy of a mask HxW, x2 and y2 exclusive; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def region_of(values: Mapping[str, Any], where: str) -> Region:
    """A region that a caller sent: its mask where it has one, else its box.

    Raises:
        Problem: 400, neither, or values that are none.
    """
    try:
        phrase = str(values.get("phrase") or "region")[:500]
        if (mask := values.get("mask")) is not None:
            size, counts = mask["size"], mask["counts"]
            if len(size) != 2 or not all(isinstance(n, int) and 0 < n <= 2**15 for n in size):
                raise ValueError("a mask has the size [height, width]")
            if size[0] * size[1] > _MOST_PIXELS:
                raise ValueError(f"a mask has at most {_MOST_PIXELS} pixels")
            return Region(phrase, mask=decode_mask({"size": size, "counts": counts}))
        box = values["box_xyxy"]
        if len(box) != 4:
            raise ValueError("a box is [x1, y1, x2, y2]")
        return Region(phrase, box_xyxy_px=tuple(float(v) for v in box))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, MemoryError) as error:
        raise Problem(400, f"{where} is no region: {str(error)[:200]}", param="messages") from error


def named_regions(
    text: str, earlier: Sequence[Mapping[str, Any]], given: Sequence[Any]
) -> tuple[str, list[Mapping[str, Any]]]:
    """A question with "@r2" and the like written as "region1", ..., and the regions those words stand for.

    Args:
        earlier: regions of the turns before, with their ids.
        given: of the question itself: ids of earlier ones, or objects with a box or mask; they come first.

    Raises:
        Problem: 400, an id that no earlier turn has, or too many.
    """
    known = {str(one.get("id")): one for one in earlier if isinstance(one, Mapping)}
    wanted: list[Mapping[str, Any]] = []
    places: dict[str, int] = {}

    def look_up(id_: str) -> Mapping[str, Any]:
        if id_ not in known:
            raise Problem(400, f"no earlier turn has the region {id_[:40]!r}; send the regions of its answers back",
                          param="messages", code="unknown_region")  # fmt: skip
        return known[id_]

    for one in given:
        if isinstance(one, str):
            places[one] = len(wanted) + 1
            one = look_up(one)
        elif not isinstance(one, Mapping):
            raise Problem(400, "regions are ids or objects", param="messages")
        wanted.append(one)

    def written(match: re.Match) -> str:
        id_ = match[1]
        if id_ not in places:
            wanted.append(look_up(id_))
            places[id_] = len(wanted)
        return f"region{places[id_]}"

    text = _NAMED.sub(written, text)
    if len(wanted) > _MOST_REGIONS:
        raise Problem(400, f"{len(wanted)} regions in one question, at most {_MOST_REGIONS}", param="messages")
    return text, wanted

"""How boxes are written in the text of an answer, and read from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: x1, y1, x2, y2: as fractions of width and height, or in the units of a format.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxFormat:
    """Boxes as text.

    `write_group(phrase, boxes)` gives what stands for a phrase and its boxes, `pattern` finds one such group and
    `read_group(match)` gives its phrase ("" where the format names none) and its boxes; both speak in units of `scale`
    to a side, or of pixels where `scale` is None. `names_phrase`: the phrase is a part of the group.
    """

    pattern: re.Pattern
    write_group: Callable[[str, Sequence[Box]], str]
    read_group: Callable[[re.Match], tuple[str, list[Box]]]
    scale: int | None = 1000
    names_phrase: bool = True

    def units(self, size_hw: tuple[int, int]) -> tuple[float, float]:
        """(horizontal, vertical) units to an image of `size_hw` pixels."""
        return (self.scale, self.scale) if self.scale is not None else (size_hw[1], size_hw[0])

    def write(self, phrase: str, boxes: Sequence[Box], size_hw: tuple[int, int]) -> str:
        """Text of boxes given as fractions."""
        across, down = self.units(size_hw)
        return self.write_group(phrase, [(x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in boxes])

    def read(self, text: str, size_hw: tuple[int, int]) -> list[tuple[tuple[int, int], str, list[Box]]]:
        """(span in `text`, phrase, boxes as fractions) of every group; corners in the wrong order are swapped, what
        lies outside of the image is cut off, and boxes without area are left out."""
        across, down = self.units(size_hw)
        found = []
        for span, phrase, boxes in self.groups(text):
            boxes = [_ordered((x1 / across, y1 / down, x2 / across, y2 / down)) for x1, y1, x2, y2 in boxes]
            boxes = [box for box in boxes if box is not None]
            if boxes:
                found.append((span, phrase, boxes))
        return found

    def groups(self, text: str) -> list[tuple[tuple[int, int], str, list[Box]]]:
        """(span in `text`, phrase, boxes in the numbers that stand there) of every group."""
        return [(match.span(), *self.read_group(match)) for match in self.pattern.finditer(text)]


def _ordered(box: Box) -> Box | None:
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in box)
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def _whole(box: Box) -> list[int]:
    return [round(value) for value in box]


def _fours(text: str) -> list[Box]:
    values = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]
    return [tuple(values[start : start + 4]) for start in range(0, len(values) - 3, 4)]


def _percent(phrase: str, boxes: Sequence[Box]) -> str:
    # Cut towards zero and never clamped, as published.
    written = ("{" + "".join(f"<{int(value)}>" for value in box) + "}" for box in boxes)
    return " ".join([*([phrase] if phrase else []), *written])


#: {<x1><y1><x2><y2>}, 0 to 100 (Uni-Med, MiniGPT-v2).
PERCENT = BoxFormat(
    pattern=re.compile(r"\{\s*<(-?\d{1,4})>\s*<(-?\d{1,4})>\s*<(-?\d{1,4})>\s*<(-?\d{1,4})>\s*\}"),
    write_group=_percent,
    read_group=lambda match: ("", [tuple(float(value) for value in match.groups())]),
    scale=100,
    names_phrase=False,
)


def _internvl(phrase: str, boxes: Sequence[Box]) -> str:
    named = f"<ref>{phrase}</ref>" if phrase else ""
    return f"{named}<box>[{', '.join(str(_whole(box)) for box in boxes)}]</box>"


#: <ref>phrase</ref><box>[[x1, y1, x2, y2]]</box>, 0 to 1000 (InternVL).
INTERNVL = BoxFormat(
    pattern=re.compile(r"(?:<ref>(.*?)</ref>\s*)?<box>\s*\[(.*?)\]\s*</box>", re.DOTALL),
    write_group=_internvl,
    read_group=lambda match: (match[1] or "", _fours(match[2])),
)


def _qwen2(phrase: str, boxes: Sequence[Box]) -> str:
    named = f"<|object_ref_start|>{phrase}<|object_ref_end|>" if phrase else ""
    return named + "".join("<|box_start|>({},{}),({},{})<|box_end|>".format(*_whole(box)) for box in boxes)


#: <|object_ref_start|>phrase<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>, 0 to 1000 (Qwen2-VL).
QWEN2 = BoxFormat(
    pattern=re.compile(
        r"(?:<\|object_ref_start\|>(.*?)<\|object_ref_end\|>)?"
        r"((?:<\|box_start\|>\(-?\d+,\s*-?\d+\),\s*\(-?\d+,\s*-?\d+\)<\|box_end\|>)+)"
    ),
    write_group=_qwen2,
    read_group=lambda match: (match[1] or "", _fours(match[2])),
)


def _json(phrase: str, boxes: Sequence[Box]) -> str:
    rows = [{"bbox_2d": _whole(box)} | ({"label": phrase} if phrase else {}) for box in boxes]
    return json.dumps(rows, ensure_ascii=False)


def _read_json(match: re.Match) -> tuple[str, list[Box]]:
    try:
        rows = json.loads(match[0])
    except json.JSONDecodeError:
        return "", []
    boxes = [row.get("bbox_2d") for row in rows]
    label = next((str(row["label"]) for row in rows if row.get("label")), "")
    return label, [tuple(box) for box in boxes if isinstance(box, list) and len(box) == 4]


_JSON = re.compile(r'\[\s*\{\s*"bbox_2d"(?:[^\[\]"]|"(?:[^"\\]|\\.)*"|\[[-\d.,\s]*\])*\}\s*\]')
#: [{"bbox_2d": [x1, y1, x2, y2], "label": "phrase"}] in pixels of the resized image (Qwen2.5-VL).
QWEN_PIXELS = BoxFormat(_JSON, _json, _read_json, scale=None)
#: The same, 0 to 1000 (Qwen3-VL).
QWEN_JSON = BoxFormat(_JSON, _json, _read_json)


def _paligemma(phrase: str, boxes: Sequence[Box]) -> str:
    written = []
    for box in boxes:
        x1, y1, x2, y2 = (min(1023, max(0, value)) for value in _whole(box))
        written.append(f"<loc{y1:04d}><loc{x1:04d}><loc{y2:04d}><loc{x2:04d}> {phrase}".rstrip())
    return " ; ".join(written)


def _read_loc(match: re.Match) -> tuple[str, list[Box]]:
    y1, x1, y2, x2 = (float(match[number]) for number in range(1, 5))
    return (match[5] or "").strip(), [(x1, y1, x2, y2)]


#: <locY1><locX1><locY2><locX2> phrase, 1024 bins, parted by ";" (PaliGemma).
PALIGEMMA = BoxFormat(
    pattern=re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>([^;<]*)"),
    write_group=_paligemma,
    read_group=_read_loc,
    scale=1024,
)

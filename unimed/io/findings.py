"""What a result says of each of its regions, once for all clinical outputs: code, color, tracking, size, sentence."""

from __future__ import annotations

import colorsys
import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimed.geometry import Geometry
from unimed.io.codes import CATEGORIES, PRIVATE_SCHEME, Code, Coding, code_phrase
from unimed.io.measurements import Measurements, measure
from unimed.markup import for_dicom
from unimed.structures import Region

NOTICE = "research use only"
#: Customary colors (sRGB) of a few kinds of tissue; all others get one of their own by their code.
_CUSTOMARY = {
    "10200004": (221, 130, 101), "64033007": (185, 102, 83), "78961009": (157, 108, 162), "39607008": (197, 165, 145),
    "15825003": (224, 97, 76), "51114001": (216, 101, 79), "29092000": (0, 151, 206), "272673000": (241, 214, 145),
    "80891009": (206, 110, 84), "12738006": (250, 250, 225), "28231008": (139, 150, 98), "15776009": (249, 180, 111),
    "89837001": (222, 154, 132), "69695003": (216, 132, 105), "108369006": (144, 238, 144),
    "367643001": (205, 205, 100), "4147007": (144, 238, 144), "52988006": (220, 245, 20),
    "79654002": (140, 224, 228), "59441001": (68, 172, 100),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Finding:
    """One region of a result, as clinical files name it.

    Attributes:
        number: of the region in the result, from 1.
        label: the phrase in one line of at most 64 characters, never empty.
        color: sRGB, 0 to 255; the same for the same code and side in every result, unless another code in it has
            nearly the same.
        tracking_id, tracking_uid: the same for the same source, model and phrase in every run.
        sentence: of the result's text, the one that speaks of the region; "" where none does.
        measurements: None where there is no mask.
    """

    number: int
    region: Region
    label: str
    coding: Coding
    color: tuple[int, int, int]
    tracking_id: str
    tracking_uid: str
    sentence: str = ""
    measurements: Measurements | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether the mask has a pixel."""
        return self.region.mask is not None and bool(self.region.mask.any())


def stable_uid(*parts) -> str:
    """A DICOM UID (2.25, PS3.5 B.2) that is the same for the same parts in every run."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def findings_of(
    prediction,
    *,
    source_uid: str = "",
    values: np.ndarray | None = None,
    unit: str = "1",
    tracking: Sequence[tuple[str, str]] = (),
) -> list[Finding]:
    """The findings of a prediction in the order of its regions.

    Args:
        prediction: `text`, `regions`, `geometry`, `model_reference`.
        source_uid: of the series, or any name of the image; tracking UIDs depend on it.
        values, unit: of the image, in the grid of the masks.
        tracking: (identifier, UID) per region, where an earlier study gave them.
    """
    found, seen = [], {}
    geometry = prediction.geometry or Geometry.pixels()
    for number, region in enumerate(prediction.regions, 1):
        label = for_dicom(region.phrase) or f"segment {number}"
        repeated = seen[label] = seen.get(label, 0) + 1
        name = label if repeated == 1 else f"{label[:58]} {repeated}"
        uid = stable_uid("tracking", source_uid, model_name(prediction), region.phrase, repeated)
        if tracking:
            name, uid = tracking[number - 1]
        coding = coding_of(region.phrase, label)
        size = None if region.mask is None else measure(region.mask, geometry, values, unit)
        color = _distinguished(color_of(coding), coding, found)
        found.append(Finding(number, region, label, coding, color, name, uid, sentence_of(prediction, region), size))
    return found


def _distinguished(color: tuple[int, int, int], coding: Coding, others: Sequence[Finding]) -> tuple[int, int, int]:
    """The color of a code, turned on where another code of the same result has nearly the same."""
    hue, light, saturation = colorsys.rgb_to_hls(*(v / 255 for v in color))
    for _ in range(8):
        near = [f for f in others if sum(abs(a - b) for a, b in zip(f.color, color, strict=True)) < 60]
        if all(
            (f.coding.type, f.coding.region, f.coding.side) == (coding.type, coding.region, coding.side) for f in near
        ):
            break
        hue = (hue + 0.381966) % 1
        color = _from_hls(hue, light, max(saturation, 0.5))
    return color


def model_name(prediction) -> str:
    """Name of the model without folders; "unimed" where none is known."""
    reference = str(prediction.model_reference or "").replace("\\", "/").rstrip("/")
    return for_dicom(reference.rsplit("/", 1)[-1]) or "unimed"


def coding_of(phrase: str, label: str) -> Coding:
    """`code_phrase`, with a private code for phrases without a letter."""
    try:
        return code_phrase(phrase)
    except ValueError:
        digest = hashlib.sha256(label.encode()).hexdigest()[:12].upper()
        category = CATEGORIES["anatomical structure"]
        return Coding(phrase, category, Code(f"U{digest}", PRIVATE_SCHEME, label), source="private")


def color_of(coding: Coding) -> tuple[int, int, int]:
    """sRGB of a code: customary for a few, else spread over the hues by the code; the right side is darker."""
    rgb = _CUSTOMARY.get(coding.type.value)
    if rgb is None or coding.region is not None:
        digest = hashlib.sha256(f"{coding.type.value} {coding.region and coding.region.value}".encode()).digest()
        hue, light = int.from_bytes(digest[:2], "big") / 2**16, 0.5 + digest[2] / 255 * 0.2
        rgb = _from_hls(hue, light, 0.75)
    return tuple(round(v * 0.78) for v in rgb) if coding.side == "right" else tuple(rgb)


def _from_hls(hue: float, light: float, saturation: float) -> tuple[int, int, int]:
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, light, saturation))


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of the sentences of a text; a full stop between digits ends none."""
    ends = [m.end() for m in re.finditer(r"[.!?\u3002\uff01\uff1f](?!\d)[\"')\]]*\s*|\n+", text)] + [len(text)]
    starts = [0, *ends[:-1]]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if text[start:end].strip()]


def sentence_of(prediction, region: Region) -> str:
    """The sentence of the text that holds the phrase of a region: by its span, else the first that names it."""
    text = prediction.text or ""
    place = region.phrase_span[0] if region.phrase_span else text.casefold().find(region.phrase.casefold())
    if place < 0 or not region.phrase.strip():
        return ""
    return next((text[start:end].strip() for start, end in sentences(text) if start <= place < end), "")


def presence_words(region: Region, drawn: bool, calibrated: bool = False) -> str:
    """What a result says of whether the thing is there, in words."""
    boxed = region.box_xyxy_px is not None
    found = "outlined" if drawn else "marked by a box" if boxed else "looked for, not outlined"
    if region.presence is None:
        return f"{found}; presence not stated"
    kind = "calibrated" if calibrated else "not calibrated"
    contrary = (region.presence < 0.5) == drawn and (drawn or not boxed)
    uncertainty = "; presence and outline contradict each other" if contrary else ""
    return f"{found}; presence {region.presence:.2f} ({kind}){uncertainty}"

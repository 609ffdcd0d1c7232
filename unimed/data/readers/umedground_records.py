"""What every data set of phrases and boxes becomes, checks of it, and the search for patients in two splits."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]
#: Patients as MIMIC and ChestX-ray write them into file names.
PATIENT_PATTERNS = (r"(?:^|/)p(\d{8})(?:/|$)", r"(?:^|/)(\d{8})_\d{3}\.")


class GroundingDataError(ValueError):
    """A file or record that cannot be used; file, record and remedy are named."""


class LeakError(GroundingDataError):
    """Patients or images that are in training and in a split that is scored."""


@dataclass
class GroundingRecord:
    """One question about one image.

    `phrases` are (phrase, boxes xyxy in pixels of a frame `frame_hw`); no box means that the phrase has no place.
    `frame_hw` is the size the annotation speaks of. `kind` is "report", "phrase", "vqa" or "class".
    """

    record_id: str
    image: str
    text: str
    phrases: list[tuple[str, list[Box]]]
    frame_hw: tuple[int, int]
    kind: str = "report"
    patient_id: str = ""
    classes: list[str] = field(default_factory=list)


@dataclass
class Counts:
    """How many records were read, kept and refused, and why."""

    source: str
    read: int = 0
    kept: int = 0
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source}: read {self.read}, kept {self.kept}, refused {len(self.refused)}"]
        lines += [f"  refused {reason}" for reason in self.refused[:5]]
        if len(self.refused) > 5:
            lines.append(f"  ... and {len(self.refused) - 5} more (dataset.counts.refused)")
        return "\n".join(lines)


def from_xywh(values: Sequence[float]) -> Box:
    """Left, top, width, height -> xyxy.

    Raises:
        ValueError: not four numbers.
    """
    x, y, width, height = (float(value) for value in values)
    return x, y, x + width, y + height


def check_record(record: GroundingRecord, source: str, require_boxes: bool = False) -> None:
    """Raises:
    GroundingDataError: no phrase, an empty one, NaN or Inf, x2 <= x1 or y2 <= y1, a box that leaves its frame by more
        than a pixel, or, with `require_boxes`, a phrase without a box.
    """
    where = f"{source}: record {record.record_id}"
    if not record.phrases:
        raise GroundingDataError(f"{where}: it has no phrase; give at least one, with or without boxes")
    height, width = record.frame_hw
    for phrase, boxes in record.phrases:
        if not isinstance(phrase, str) or not phrase.strip():
            raise GroundingDataError(f"{where}: a phrase is empty or no text: {phrase!r}")
        if require_boxes and not boxes:
            raise GroundingDataError(
                f"{where}: phrase {phrase!r} has no box; set require_boxes=False to train it as one without a place"
            )
        for box in boxes:
            if len(box) != 4 or not all(math.isfinite(value) for value in box):
                raise GroundingDataError(f"{where}: box {box} of {phrase!r} holds NaN or Inf")
            x1, y1, x2, y2 = box
            if x2 <= x1 or y2 <= y1:
                raise GroundingDataError(f"{where}: box {box} of {phrase!r} has x2 <= x1 or y2 <= y1")
            if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
                raise GroundingDataError(
                    f"{where}: box {box} of {phrase!r} lies outside its image of {width} x {height} px"
                )


def checked(
    records: Iterable[GroundingRecord | GroundingDataError], source: str, require_boxes: bool, strict: bool
) -> tuple[list[GroundingRecord], Counts]:
    """Records that pass, and the counts.

    Args:
        records: readers yield an error where a record cannot even be read.
        strict: raise on the first broken record instead of refusing it.

    Raises:
        GroundingDataError: a broken record with `strict`, an id used twice, or no record is left.
    """
    counts, kept, ids = Counts(source), [], set()
    for record in records:
        counts.read += 1
        try:
            if isinstance(record, GroundingDataError):
                raise record
            if record.record_id in ids:
                raise GroundingDataError(f"{source}: record {record.record_id}: this id is used twice")
            ids.add(record.record_id)
            check_record(record, source, require_boxes)
        except GroundingDataError as error:
            if strict:
                raise
            counts.refused.append(str(error).removeprefix(f"{source}: "))
            continue
        kept.append(record)
    counts.kept = len(kept)
    if not kept:
        raise GroundingDataError(f"{counts}\nno record is left")
    return kept, counts


def patient_of(image: str) -> str:
    """Patient in an image path of MIMIC-CXR or ChestX-ray8; empty where none can be told."""
    for pattern in PATIENT_PATTERNS:
        if found := re.search(pattern, image):
            return found[1]
    return ""


def leaks(records: Sequence[GroundingRecord], others: Sequence[GroundingRecord]) -> list[GroundingRecord]:
    """Those of `records` whose patient, or image where no patient is known, is also in `others`."""
    patients = {record.patient_id for record in others if record.patient_id}
    images = {record.image for record in others}
    return [record for record in records if record.patient_id in patients or record.image in images]


def part_of(record: GroundingRecord, fractions: Sequence[float]) -> int:
    """Which part (0, 1, ...) of a split by patient a record belongs to; the same on every machine.

    Args:
        fractions: of the parts, summing to 1.
    """
    owner = record.patient_id or record.image
    number = int(hashlib.sha256(owner.encode()).hexdigest()[:12], 16) / 16**12
    for part, fraction in enumerate(fractions):
        number -= fraction
        if number < 0:
            return part
    return len(fractions) - 1

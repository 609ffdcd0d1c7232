"""Medical report grounding as `Sample`s: a report, phrase, question or class list in, phrases and boxes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from unimed.data import canonical
from unimed.data.readers.umedground_formats import FORMATS
from unimed.data.readers.umedground_records import (
    Counts,
    GroundingDataError,
    GroundingRecord,
    LeakError,
    checked,
    leaks,
    part_of,
)
from unimed.files import resolve_inside
from unimed.io.errors import ImageError, ReadError
from unimed.io.images import load as load_image
from unimed.registry import DATASETS, renames
from unimed.structures import Intent, Region, Sample

SPLITS = ("train", "val", "test")
#: How boxes of an annotation frame come to an image of another size.
RESIZED = ("stretch", "letterbox")
LEAKS = ("error", "drop", "allow")


@DATASETS.register_module()
@renames(shares="split_fractions")
class MedicalGroundingDataset:
    """Phrases and boxes of a published data set or of one's own.

    Boxes of the samples are in pixels of the image on disk, whatever frame the annotation has. A conversation is one
    question and one answer with a [BOX] per box; `labels` hold task "mrg", `kind` and `classes`.

    Args:
        path: annotation file; "{split}" in it stands for the split.
        images: folder that image paths are relative to.
        format: a key of `FORMATS`: mrg, ms_cxr, chestxray8, questions.
        split: "train", "val" or "test". Files of one split carry it in their name; others are split by patient.
        split_fractions: of the three splits where one file holds them all.
        reports: where the format takes them; see `grounding_formats`.
        text_key: text field of an mrg file.
        ask: "text" (report, question or class list as the record has it) or "phrase" (its phrases alone).
        resized: how images got into the annotation's frame where they are of another size on disk: "stretch" or
            "letterbox" (centred on black). None refuses such images.
        against: annotation files of training whose patients must not be here; by default the train file beside a val or
            test file.
        leak: "error", "drop" (leave such records out and count them) or "allow".
        require_boxes: refuse phrases without a box.
        strict: raise on the first broken record instead of refusing it.
        style: of answers, "tags" or "published"; None leaves it to the dialect of the model.
        compat: "reference" words questions and answers as the released loader does.
        limit: keep only the first so many records.
        report_counts: where the line with counts goes; printed by default.

    Raises:
        FileNotFoundError: no annotation file.
        GroundingDataError: an unusable file or, with `strict`, record; on access an image that is missing or not of the
            size the annotation claims.
        LeakError: patients shared with training.
    """

    def __init__(
        self,
        path,
        images,
        format: str = "mrg",  # noqa: A002 - the word users look for
        split: str = "train",
        split_fractions: Sequence[float] = (0.7, 0.1, 0.2),
        reports=None,
        text_key: str | None = None,
        ask: str = "text",
        resized: str | None = None,
        against: Sequence | None = None,
        leak: str = "error",
        require_boxes: bool = False,
        strict: bool = False,
        style: str | None = None,
        compat: str | None = None,
        limit: int | None = None,
        report_counts: Callable[[str], None] = print,
    ):
        for name, value, choices in (
            ("format", format, FORMATS),
            ("split", split, SPLITS),
            ("ask", ask, ("text", "phrase")),
            ("resized", resized, (None, *RESIZED)),
            ("leak", leak, LEAKS),
            ("style", style, (None, "tags", "published")),
            ("compat", compat, (None, "reference")),
        ):
            if value not in choices:
                raise GroundingDataError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
        self.images, self.format, self.split, self.ask, self.resized = Path(images), format, split, ask, resized
        self.published = compat == "reference"
        self.style = style
        self.file = Path(str(path).replace("{split}", split))
        if not self.file.is_file():
            raise FileNotFoundError(f"{self.file}: no such annotation file; see docs/umedground.md for the layouts")
        options = {"mrg": {"text_key": text_key}, "questions": {}}.get(format, {"reports": reports})
        found = FORMATS[format](self.file, **options)
        records, self.counts = checked(found, str(self.file), require_boxes, strict)
        self.records = self._part(records, split_fractions, path)
        self._check_leaks(against, leak, path)
        self.records = self.records if limit is None else self.records[:limit]
        report_counts(str(self.counts))

    def _part(self, records: list[GroundingRecord], split_fractions, path) -> list[GroundingRecord]:
        """Records of the split: all where the file is of one split, else those of its patients."""
        if "{split}" in str(path) or any(f"_{name}" in self.file.stem for name in SPLITS):
            return records
        wanted = SPLITS.index(self.split)
        mine = [record for record in records if part_of(record, split_fractions) == wanted]
        if not mine:
            raise GroundingDataError(
                f"{self.file}: no patient falls into {self.split} with split_fractions {tuple(split_fractions)}"
            )
        return mine

    def _check_leaks(self, against, leak: str, path) -> None:
        if self.split == "train" or leak == "allow":
            return
        files = [Path(file) for file in against] if against is not None else [self._train_file(path)]
        others: list[GroundingRecord] = []
        for file in files:
            if file is not None and file.is_file() and file != self.file:
                others += [record for record in FORMATS[self.format](file) if isinstance(record, GroundingRecord)]
            elif against is not None:
                raise FileNotFoundError(f"{file}: no such file to check for shared patients")
        shared = leaks(self.records, others)
        if not shared:
            return
        patients = len({record.patient_id or record.image for record in shared})
        what = f"{len(shared)} of {len(self.records)} records ({patients} patients) are also in training"
        if leak == "error":
            raise LeakError(
                f"{self.file}: {what}; set leak='drop' to leave them out, or split by patient with one file for all"
            )
        names = {record.record_id for record in shared}
        self.records = [record for record in self.records if record.record_id not in names]
        self.counts.kept -= len(shared)
        self.counts.refused.append(f"{what}: left out")
        if not self.records:
            raise LeakError(f"{self.file}: {what}: none is left")

    def _train_file(self, path) -> Path | None:
        if "{split}" in str(path):
            return Path(str(path).replace("{split}", "train"))
        name = self.file.name
        for split in SPLITS[1:]:
            if f"_{split}" in name:
                return self.file.with_name(name.replace(f"_{split}", "_train"))
        return None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        array, geometry = self._image(record)
        phrases = [(phrase, self._boxes(record, boxes, array.shape[:2])) for phrase, boxes in record.phrases]
        if self.published and len(phrases) > 3:
            # The released loader grounds the first phrase alone where there are more than three.
            phrases = phrases[:1]
        answer, spans = canonical.pointed_phrases([(phrase, len(boxes)) for phrase, boxes in phrases])
        text = record.text if self.ask == "text" else ". ".join(phrase for phrase, _ in phrases) + "."
        compat = "reference" if self.published else None
        intent = Intent("report_grounding", text, drawn=self.split == "train", style=self.style, compat=compat)
        regions = []
        for (phrase, boxes), span in zip(phrases, spans, strict=True):
            regions += [Region(phrase, box_xyxy_px=box, presence=1.0, phrase_span=span) for box in boxes]
            if not boxes:
                regions.append(Region(phrase, presence=0.0, phrase_span=span))
        return Sample(
            images=(array,),
            geometry=geometry,
            sample_id=record.record_id,
            modality="X-ray",
            conversation=(("user", canonical.question(intent)), ("assistant", answer)),
            intent=intent,
            regions=tuple(regions),
            labels={"task": "mrg", "kind": record.kind, "classes": record.classes, "text": text},
            patient_id=record.patient_id,
            source=self.format,
        )

    def _image(self, record: GroundingRecord):
        name, where = Path(record.image), f"{self.file}: record {record.record_id}"
        path = resolve_inside(self.images, name, where=where, error=GroundingDataError)
        try:
            image = load_image(path, modality="X-ray")
        except FileNotFoundError as error:
            raise GroundingDataError(f"{where}: image {path} is missing") from error
        except (ReadError, ImageError) as error:
            raise GroundingDataError(f"{self.file}: record {record.record_id}: {error}") from error
        array = image.pixels
        if array.shape[:2] != record.frame_hw and self.resized is None:
            raise GroundingDataError(
                f"{self.file}: record {record.record_id}: image {name} is {array.shape[1]} x {array.shape[0]} px, its "
                f"boxes speak of {record.frame_hw[1]} x {record.frame_hw[0]}; say how it was resized with "
                f"resized={' or '.join(map(repr, RESIZED))}"
            )
        return array, image.geometry

    def _boxes(self, record: GroundingRecord, boxes, size_hw) -> list[tuple[float, float, float, float]]:
        """Boxes in pixels of the image on disk, cut at its edge (annotations may leave it by a pixel)."""
        (height, width), (rows, columns) = size_hw, record.frame_hw
        if self.resized == "letterbox":
            scale = max(height / rows, width / columns)
            offset = ((columns - width / scale) / 2, (rows - height / scale) / 2)
            factors = (scale, scale)
        else:
            offset, factors = (0.0, 0.0), (width / columns, height / rows)
        moved = []
        for x1, y1, x2, y2 in boxes:
            left, right = ((x - offset[0]) * factors[0] for x in (x1, x2))
            top, bottom = ((y - offset[1]) * factors[1] for y in (y1, y2))
            box = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
            if box[2] <= box[0] or box[3] <= box[1]:
                raise GroundingDataError(
                    f"{self.file}: record {record.record_id}: box {(x1, y1, x2, y2)} lies outside its image of "
                    f"{width} x {height} px; is resized={self.resized!r} right?"
                )
            moved.append(box)
        return moved


__all__ = ["Counts", "GroundingDataError", "LeakError", "MedicalGroundingDataset"]

"""Reader of the record format: one JSON object per line, images and masks beside it (`data/formats.md`)."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.files import read_json_lines, resolve_inside
from unimed.geometry import Geometry, GeometryError, align, reorient
from unimed.io.errors import ImageError, MaskError, ReadError, WindowError
from unimed.io.images import Image
from unimed.io.images import load as load_image
from unimed.io.masks import load_mask, whole_numbers
from unimed.io.read import read
from unimed.io.remote import redacted
from unimed.io.volume_slices import choose_slices
from unimed.io.windows import choose_window, known_site
from unimed.registry import DATASETS, renames
from unimed.structures import Region, Sample
from unimed.tokens import BOX_TOKEN, SEG_TOKEN

TASKS = ("referring", "box", "vqa", "classification", "caption", "report", "region", "absent", "volume")
REQUIRED = ("id", "task", "question", "answer")
TOKENS = re.compile(f"({re.escape(SEG_TOKEN)}|{re.escape(BOX_TOKEN)})")


class RecordError(ValueError):
    """A record that cannot be used; the message names the file, the record and the remedy, and no keys of URLs."""

    def __init__(self, message: str = ""):
        super().__init__(redacted(message))


def read_records(path: str | Path) -> list[dict]:
    """All records of a JSON lines file, checked for what every record must have.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: a line that is no JSON object, misses a field, names an unknown task or repeats an id.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; `unimed prepare folder` makes it out of your own images and masks, "
            "`unimed prepare sample` fetches the sample set (docs/data.md)"
        )
    records, ids = [], set()
    for number, record in read_json_lines(path, error=RecordError):
        check_record(record, f"{path}:{number}")
        if record["id"] in ids:
            raise RecordError(f"{path}:{number}: id {record['id']!r} is used twice")
        ids.add(record["id"])
        records.append(record)
    return records


def check_record(record, where: str, paths: bool = True) -> None:
    """What every record must have.

    Args:
        paths: images are named by a path; a container may hold them itself.

    Raises:
        RecordError: no JSON object, a field that is missing or of another type, an unknown task, or not exactly one
            picture.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{where}: expected one JSON object")
    if missing := [name for name in REQUIRED if name not in record]:
        raise RecordError(f"{where}: field {', '.join(missing)} is missing")
    for name in REQUIRED:
        if not isinstance(record[name], str):
            raise RecordError(f"{where}: field {name} must be text, got {record[name]!r}")
    patient = record.get("patient_id", "")
    if isinstance(patient, int) and not isinstance(patient, bool):
        record["patient_id"] = str(patient)  # 77 and "77" are one patient
    elif not isinstance(patient, str | None):
        # Its value is not said: messages end up in logs.
        raise RecordError(f"{where}: field patient_id must be text, got {type(patient).__name__}")
    regions = record.get("regions") or []
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise RecordError(f"{where}: field regions must be a list of objects with phrase, mask or box_xyxy_px")
    for name in ("image", "volume"):
        if paths and not isinstance(record.get(name, ""), str):
            raise RecordError(f"{where}: field {name} must be a path, got {record[name]!r}")
    if record["task"] not in TASKS:
        raise RecordError(f"{where}: unknown task {record['task']!r}; known are {', '.join(TASKS)}")
    if ("image" in record) == ("volume" in record):
        raise RecordError(f"{where}: give either `image` or `volume`")


def check_counts(record: dict) -> None:
    """One [SEG] per mask and one [BOX] per box, in the order of the regions.

    A region that is not there (`present` false) has no token. In task "region" the mask is given, not asked for.

    Raises:
        RecordError: tokens of the answer and regions disagree.
    """
    expected = []
    for region in record.get("regions") or ():
        if record["task"] == "region" or region.get("present") is False:
            continue
        mask, box = region.get("mask"), region.get("box_xyxy_px")
        if not mask and not box:
            raise RecordError(
                f"record {record['id']}: region {region.get('phrase')!r} has neither mask nor box; "
                "say `present: false` if it is not there"
            )
        expected += [SEG_TOKEN] * bool(mask) + [BOX_TOKEN] * bool(box)
    found = TOKENS.findall(record["answer"])
    if found != expected:
        raise RecordError(
            f"record {record['id']}: the answer points {_counted(found)}, its regions ask for {_counted(expected)}; "
            "write one [SEG] per mask and one [BOX] per box, in the order of `regions`"
        )


def _counted(tokens: list[str]) -> str:
    return f"{tokens.count(SEG_TOKEN)} x [SEG] and {tokens.count(BOX_TOKEN)} x [BOX]"


@DATASETS.register_module()
@renames(with_object="foreground_fraction", eight_bit="to_uint8")
class RecordDataset:
    """Records of one split as `Sample`s.

    Args:
        path: folder of the data set (with `records/SPLIT.jsonl`), or one JSON lines file whose paths are relative to
            the folder above it if it lies in `records/`, else to its own folder.
        split: "train", "val", "test" or "aux"; ignored where `path` is a file.
        tasks: keep only records of these tasks; all if None.
        phrases: keep only records that ask for one of these, there or not; all if None.
        targets: keep only records that name at least this many things in one question, or (least, most); all if None.
        limit: keep only the first so many records.
        slices: of a volume, keep only so many axial slices, spread evenly (for training; all are kept by default).
        foreground_fraction: fraction of these that shall show what the record points at.
        contiguous: those slices are neighbors, drawn anew each time (for decoders that read slices together).
        to_uint8: deeper volumes as uint8, by the percentiles of the whole volume; implied by `slices`.

    A sample's conversation is (("user", question), ("assistant", answer)). Its `labels` hold `task`, `label`,
    `choices`, `site`, `note` and `split`. Pictures come as HxW or HxWx3, volumes as DxHxW with D to the head, H to the
    back and W to the patient's left, whatever the axes of the file.

    Raises:
        FileNotFoundError, RecordError: on construction for the JSON lines, on access for an image, a mask that does
            not fit its image or is empty, or a count of tokens that disagrees with the regions.
    """

    def __init__(
        self,
        path,
        split: str = "train",
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        slices: int | None = None,
        foreground_fraction: float = 0.0,
        to_uint8: bool = False,
        contiguous: bool = False,
        phrases: Sequence[str] | None = None,
        targets: int | Sequence[int] | None = None,
    ):
        path = Path(path)
        self.contiguous = contiguous
        self.slices, self.foreground_fraction = slices, foreground_fraction
        self.to_uint8 = to_uint8 or slices is not None
        self.file = path if path.is_file() else path / "records" / f"{split}.jsonl"
        self.root = self.file.parent.parent if self.file.parent.name == "records" else self.file.parent
        if tasks is not None and (unknown := sorted(set(tasks) - set(TASKS))):
            raise RecordError(f"unknown task {', '.join(unknown)}; known are {', '.join(TASKS)}")
        records = [r for r in read_records(self.file) if tasks is None or r["task"] in tasks]
        if phrases is not None:
            asked = set(phrases)
            records = [r for r in records if asked & {region.get("phrase") for region in r.get("regions") or ()}]
        if targets is not None:
            least, most = (targets, math.inf) if isinstance(targets, int) else targets
            records = [r for r in records if least <= len(r.get("regions") or ()) <= most]
        self.records = records if limit is None else records[:limit]

    @property
    def remarks(self) -> deque:
        """What the masks read last should be looked at for; the checker collects it."""
        return self.__dict__.setdefault("_remarks", deque(maxlen=1000))

    def __len__(self) -> int:
        return len(self.records)

    def length_of(self, index: int) -> int:
        """Tokens of the text, estimated: three characters each. For grouping by length and token budgets."""
        record = self.records[index]
        return 1 + (len(record["question"]) + len(record["answer"])) // 3

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        check_counts(record)
        image = stored = held = None
        if "volume" in record:
            array, geometry = self._volume(record, record["volume"])
            stored, held = geometry, array.shape
            array, geometry = reorient(array, geometry, "SPL")
            array = np.ascontiguousarray(array)
        else:
            image = self._image(record)
            self._note_turn(record, image)
            array, geometry = image.pixels, image.geometry
        source = image if image is not None else (held, stored)
        regions = tuple(self._region(record, entry, array.shape, source) for entry in record.get("regions") or ())
        if "volume" in record and self.to_uint8 and array.dtype != np.uint8:
            try:
                array = choose_window(array, stored, **self._known(record))(array)
            except WindowError as error:
                raise RecordError(f"{self.file}: record {record['id']}: {record['volume']}: {error}") from error
        if "volume" in record and self.slices is not None:
            array, geometry, regions = self._thinned(array, geometry, regions)
        return Sample(
            images=(array,),
            geometry=geometry,
            sample_id=record["id"],
            modality=record.get("modality", ""),
            conversation=(("user", record["question"]), ("assistant", record["answer"])),
            regions=regions,
            labels={
                name: record.get(name) if name != "site" else record.get(name, "")
                for name in ("task", "label", "choices", "site", "note", "split")
            },
            patient_id=record.get("patient_id") or "",
            source=record.get("source", ""),
            license=record.get("license", record.get("licence", "")),
            label_origin=record.get("label_origin", ""),
        )

    def _thinned(self, array: np.ndarray, geometry: Geometry, regions: tuple[Region, ...]):
        """Some slices of a volume, for training."""
        masks = [region.mask for region in regions if region.mask is not None]
        shows = np.any([mask.any(axis=(1, 2)) for mask in masks], axis=0) if masks else np.zeros(len(array), bool)
        chosen = choose_slices(shows.tolist(), self.slices, self.foreground_fraction, contiguous=self.contiguous)
        thinned = []
        for region in regions:
            mask = None if region.mask is None else region.mask[chosen]
            thinned.append(replace(region, mask=mask))
        # Slices lie at uneven distances now, which no affine can say.
        return array[chosen], Geometry.pixels(source_format=geometry.source_format), tuple(thinned)

    def _known(self, record: dict) -> dict:
        """What a record says that chooses grey values."""
        modality = str(record.get("modality") or "")
        return {"modality": modality, "site": known_site(record.get("site") or "", modality)}

    def _image(self, record: dict) -> Image:
        known = self._known(record)
        return self._tried(record, record["image"], lambda source, name: load_image(source, name=name, **known))

    def _volume(self, record: dict, name: str) -> tuple[np.ndarray, Geometry]:
        return self._tried(record, name, lambda source, _: read(source))

    def _tried(self, record: dict, name: str, work):
        """`work(source, name)` on what the record names; what goes wrong names the record."""
        try:
            return work(self._source(record, name), str(self.root / name))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.file}: record {record['id']} names {name}, which is missing") from error
        except (ReadError, ImageError, MaskError) as error:
            raise RecordError(f"{self.file}: record {record['id']}: {error}") from error

    def _source(self, record: dict, name: str) -> Path | bytes:
        """Where the bytes of a name are."""
        return resolve_inside(self.root, name, where=f"{self.file}: record {record['id']}", error=RecordError)

    def _volume_mask(
        self, record: dict, name: str, label: int | None, shape: tuple[int, ...], target: Geometry
    ) -> np.ndarray:
        """At the same place in the patient as its volume, whatever the order of its axes; turned to "SPL" as that is.

        Args:
            label: the value of a label map that is meant; everything above 0 if None.
            shape, target: of the volume as stored, which is what two files without directions have in common.
        """
        mask, geometry = self._volume(record, name)
        try:
            mask = align(whole_numbers(mask, name), geometry, target, shape)[0]
            mask = np.ascontiguousarray(reorient(mask, target, "SPL")[0])
            return mask > 0 if label is None else mask == label
        except (GeometryError, MaskError) as error:
            raise RecordError(
                f"{self.file}: record {record['id']}: mask {name} is {mask.shape}, the image {shape}: {error}"
            ) from error

    def _note_turn(self, record: dict, image: Image) -> None:
        if image.source.orientation != 1 and any(r.get("box_xyxy_px") for r in record.get("regions") or ()):
            turn = image.source.orientation
            self.remarks.append(
                f"record {record['id']}: image {record['image']}: EXIF orientation {turn}; boxes are taken to be drawn "
                "on the upright image"
            )

    def _image_mask(self, record: dict, name: str, label, image: Image) -> np.ndarray:
        mask, remarks = self._tried(
            record, name, lambda source, where: load_mask(source, label=label, image=image, name=where)
        )
        self.remarks.extend(f"record {record['id']}: mask {name}: {one}" for one in remarks)
        return mask

    def _region(self, record: dict, entry: dict, shape: tuple[int, ...], source: Image | tuple) -> Region:
        """`shape` is that of the sample's image; `source` the image, or shape and geometry of the volume as stored."""
        mask, box, span = None, entry.get("box_xyxy_px"), entry.get("phrase_span")
        if entry.get("mask"):
            label = entry.get("mask_label")
            if isinstance(source, tuple):
                mask = self._volume_mask(record, entry["mask"], label, *source)
            else:
                mask = self._image_mask(
                    record, entry["mask"], tuple(label) if isinstance(label, list) else label, source
                )
            if not mask.any():
                raise RecordError(f"{self.file}: record {record['id']}: mask {entry['mask']} is empty")
        present = entry.get("present")
        try:
            if box:
                height, width = shape[-2:] if "volume" in record else shape[:2]
                # A pixel of slack for boxes that were rounded.
                if min(box[0], box[1]) < -1 or box[2] > width + 1 or box[3] > height + 1:
                    raise ValueError(f"box_xyxy_px {list(box)} reaches out of the image of {width} x {height} pixels")
            return Region(
                phrase=entry["phrase"],
                mask=mask,
                box_xyxy_px=tuple(float(v) for v in box) if box else None,
                presence=None if present is None else float(present),
                phrase_span=tuple(span) if span else None,
            )
        except (TypeError, ValueError) as error:
            raise RecordError(f"{self.file}: record {record['id']}: {error}") from error

"""Volumes with masks by name: Medical Segmentation Decathlon, TotalSegmentator and ReXGroundingCT as they come."""

from __future__ import annotations

import csv
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from unimed.data.readers.uni_med import FieldError, field, inside
from unimed.files import read_json
from unimed.geometry import Geometry, GeometryError, align, reorient
from unimed.io.errors import MaskError
from unimed.io.limits import ReadError
from unimed.io.masks import whole_numbers
from unimed.io.read import read
from unimed.registry import DATASETS
from unimed.structures import Region, Sample


class _Volumes(ABC):
    """One sample per scan with a region per name; DxHxW with D to the head, H to the back, W to the patient's left.

    A subclass gives `read()`, records with `id`, `image` and what `regions` needs.

    Args:
        names: only these, as the data set spells them; all if None.
        limit: only the first so many scans.

    Raises:
        FileNotFoundError, FieldError: what is missing or does not fit, by file and record.
    """

    source, modality = "", "CT"

    def __init__(self, root, split: str = "train", names: Sequence[str] | None = None, limit: int | None = None):
        self.root, self.split, self.names = Path(root), split, None if names is None else list(names)
        self.records = list(self.read())[:limit]
        if not self.records:
            raise FieldError(f"{self.root}: holds no scan of the part {split!r}")

    @abstractmethod
    def read(self) -> Iterator[dict]:
        """Records with `id`, `image` and what `regions` needs."""

    @abstractmethod
    def regions(self, record: dict, geometry: Geometry, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
        """(phrase, bool mask in the grid of the file) of every name that is asked for."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        try:
            array, stored = read(record["image"])
            while array.ndim > 3:  # several sequences: the first
                array = array[..., 0]
            regions = []
            for phrase, mask in self.regions(record, stored, array.shape):
                mask = np.ascontiguousarray(reorient(mask, stored, "SPL")[0])
                there = bool(mask.any())
                regions.append(Region(phrase, mask=mask if there else None, presence=float(there)))
            array, geometry = reorient(array, stored, "SPL")
        except (FileNotFoundError, ReadError, MaskError, GeometryError) as error:
            raise FieldError(f"{self.root}: scan {record['id']}: {error}") from error
        return Sample(
            images=(np.ascontiguousarray(array),), geometry=geometry, sample_id=record["id"],
            modality=record.get("modality", self.modality), regions=tuple(regions),
            labels={"task": "volume", "site": record.get("site", "")}, patient_id=record.get("patient", record["id"]),
            source=self.source, label_origin="published with the data set",
        )  # fmt: skip

    def aligned(self, path: Path, geometry: Geometry, shape: tuple[int, ...]) -> np.ndarray:
        """A label map in the grid of the image file."""
        values, own = read(path)
        return align(whole_numbers(values, str(path)), own, geometry, shape)[0]


@DATASETS.register_module()
class DecathlonDataset(_Volumes):
    """`<root>/dataset.json` with labels {number: name} and training [{image, label}]; both NIfTI.

    Labels of its own test part are not public. "test" are the training scans whose name falls into the last fifth of
    its hash, "train" all others: the same in every copy of the data.
    """

    source = "msd"

    def read(self) -> Iterator[dict]:
        path = self.root / "dataset.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        content = read_json(path, error=FieldError)
        labels = {int(number): str(name) for number, name in field(content, "labels", dict, str(path)).items()}
        self.labels = {number: name for number, name in labels.items() if number}
        if unknown := sorted(set(self.names or ()) - set(self.labels.values())):
            raise FieldError(f"{path}: no label is called {unknown[0]!r}; there are {', '.join(self.labels.values())}")
        modalities = content.get("modality") or {}
        modality = str(next(iter(modalities.values()), "CT"))
        for number, entry in enumerate(field(content, "training", list, str(path))):
            where = f"{path}: training {number}"
            image, label = field(entry, "image", str, where), field(entry, "label", str, where)
            name = Path(image).name.removesuffix(".gz").removesuffix(".nii")
            if (held_out(name) and self.split == "test") or (not held_out(name) and self.split == "train"):
                yield {
                    "id": name, "image": inside(self.root, image, where), "label": inside(self.root, label, where),
                    "modality": "CT" if modality.upper() == "CT" else "MRI",
                }  # fmt: skip

    def regions(self, record, geometry, shape):
        labels = self.aligned(record["label"], geometry, shape)
        for number, name in self.labels.items():
            if self.names is None or name in self.names:
                yield name.lower(), labels == number


@DATASETS.register_module()
class TotalSegmentatorDataset(_Volumes):
    """`<root>/meta.csv` (image_id; ...; split), `<root>/<image_id>/ct.nii.gz` (or mri.nii.gz) and
    `<root>/<image_id>/segmentations/<name>.nii.gz`; the phrase of `kidney_left` is "kidney left"."""

    source = "totalsegmentator"

    def read(self) -> Iterator[dict]:
        path = self.root / "meta.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        with open(path, newline="", encoding="utf-8-sig") as stream:
            head = stream.readline()
            rows = list(csv.DictReader(stream, head.strip().split(";" if ";" in head else ","),
                                       delimiter=";" if ";" in head else ","))  # fmt: skip
        for number, row in enumerate(rows):
            where = f"{path}: record {number}"
            if field(row, "split", str, where) != self.split:
                continue
            name = field(row, "image_id", str, where)
            folder = inside(self.root, name, where)
            image = folder / "mri.nii.gz" if (folder / "mri.nii.gz").is_file() else folder / "ct.nii.gz"
            modality = "MRI" if image.name.startswith("mri") else "CT"
            yield {"id": name, "image": image, "folder": folder / "segmentations", "modality": modality}

    def regions(self, record, geometry, shape):
        files = sorted(record["folder"].glob("*.nii.gz"))
        if not files:
            raise FileNotFoundError(f"{record['folder']}: holds no masks")
        for file in files:
            name = file.name.removesuffix(".nii.gz")
            if self.names is None or name in self.names:
                yield name.replace("_", " "), self.aligned(file, geometry, shape) > 0


@DATASETS.register_module()
class ReXGroundingCtDataset(_Volumes):
    """`<root>/dataset.json` ({part: [{name, findings {number: sentence}}]}), `<root>/images/<name>` (scans of CT-RATE)
    and `<root>/segmentations/<name>`, a mask per finding along the first or the last axis."""

    source = "rexgroundingct"

    def read(self) -> Iterator[dict]:
        path = self.root / "dataset.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        content = read_json(path, error=FieldError)
        for number, record in enumerate(field(content, self.split, list, str(path))):
            where = f"{path}: {self.split} {number}"
            name = field(record, "name", str, where)
            findings = field(record, "findings", dict, where)
            stem = name.removesuffix(".gz").removesuffix(".nii")
            patient = "_".join(stem.split("_")[:2])
            yield {
                "id": stem, "image": inside(self.root, f"images/{name}", where), "patient": patient,
                "label": inside(self.root, f"segmentations/{name}", where), "site": "chest",
                "findings": [str(findings[key]) for key in sorted(findings, key=int)],
            }  # fmt: skip

    def regions(self, record, geometry, shape):
        values, _ = read(record["label"], phase="all")
        count = len(record["findings"])
        values = values[..., None] if values.ndim == 3 and count == 1 else values
        if values.ndim == 4 and values.shape[0] == count and values.shape[1:] == shape:
            values = np.moveaxis(values, 0, -1)
        if values.shape != (*shape, count):
            raise MaskError(f"{record['label']}: is {values.shape} for {count} findings of an image {shape}")
        for number, sentence in enumerate(record["findings"]):
            yield sentence, values[..., number] > 0


def held_out(name: str) -> bool:
    """Whether a scan is in the fifth that is held out, by the hash of its name."""
    return hashlib.sha256(name.encode()).digest()[0] >= 205

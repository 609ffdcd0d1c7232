"""Cases of the sample set: what a block delivers, and the folder it is written to.

A block knows where its images come from and what is in them; it delivers `Case`s. Questions and answers are made of a
case elsewhere (`unimed.data.prepare.questions`), so that every image is asked in the same way.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unimed.files import write_atomic, write_json_lines
from unimed.geometry import Geometry
from unimed.io.write import write_nifti

#: Longest side of a picture of the sample set, in pixels.
MAX_SIDE_PX = 512

SPLITS = ("train", "val", "test", "aux")


@dataclass(frozen=True, eq=False)
class Structure:
    """Something that can be pointed at. `mask` is bool in the grid of the case; `objects` are its single pieces.

    `piece` is the name of one of them ("nucleus" where the phrase is "nuclei").
    """

    phrase: str
    mask: np.ndarray
    piece: str = ""
    objects: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """One image or volume with everything that is known of it.

    `image` is uint8 HxW or HxWx3, or a volume (I, J, K) where `geometry` is given. `absent` are phrases of things that
    are certainly not in it. `pixel_mm` is (height, width) of a pixel, None where unknown. `classes` says whether the
    modality may be asked as a classification: not where one split has no other source of the same class.
    """

    name: str
    image: np.ndarray
    modality: str
    site: str
    split: str
    patient_id: str
    source: str
    license: str
    label_origin: str
    structures: tuple[Structure, ...] = ()
    absent: tuple[str, ...] = ()
    note: str = ""
    plane: str = ""
    pixel_mm: tuple[float, float] | None = None
    radiological: bool = False
    caption: str = ""
    geometry: Geometry | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"case {self.name}: split {self.split!r}; known are {', '.join(SPLITS)}")
        shape = self.image.shape if self.geometry is not None else self.image.shape[:2]
        for structure in self.structures:
            if structure.mask.shape != shape or structure.mask.dtype != np.bool_:
                raise ValueError(f"case {self.name}: mask of {structure.phrase!r} does not fit the image {shape}")


def shrink(image: np.ndarray, max_side_px: int = MAX_SIDE_PX) -> np.ndarray:
    """`image` (uint8 HxW or HxWx3) with its longer side at most `max_side_px`; smaller ones are left alone."""
    from PIL import Image

    height, width = image.shape[:2]
    factor = max_side_px / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight box xyxy in pixels around a 2D mask that is not empty; x2 and y2 exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class Folder:
    """Writes the files of a data set below `root` and remembers the records, which `close` writes as JSON lines."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        for name in ("records", "images", "masks", "volumes"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.records: dict[str, list[dict]] = {split: [] for split in SPLITS}
        self._ids: set[str] = set()

    def write_image(self, case: Case) -> str:
        """Write the image of a case; returns its path relative to the root."""
        if case.geometry is not None:
            path = f"volumes/{case.name}.nii.gz"
            write_nifti(self.root / path, case.image, case.geometry)
            return path
        return self._write_png(f"images/{case.name}.png", case.image)

    def write_mask(self, case: Case, structure: Structure) -> str:
        """Write the mask of a structure, 0 and 255 in a PNG or 0 and 1 in a NIfTI; returns its relative path."""
        stem = f"masks/{case.name}-{slug(structure.phrase)}"
        if case.geometry is not None:
            write_nifti(self.root / f"{stem}.nii.gz", structure.mask, case.geometry)
            return f"{stem}.nii.gz"
        return self._write_png(f"{stem}.png", structure.mask.astype(np.uint8) * 255)

    def _write_png(self, path: str, array: np.ndarray) -> str:
        from PIL import Image

        # The whole folder is renamed into place at the end, so the single file needs no care of its own.
        Image.fromarray(array).save(self.root / path)
        return path

    def add(self, record: dict) -> None:
        """Remember a record.

        Raises:
            ValueError: its id is taken.
        """
        if record["id"] in self._ids:
            raise ValueError(f"record id {record['id']!r} is used twice")
        self._ids.add(record["id"])
        self.records[record["split"]].append(record)

    def close(self, description: dict) -> None:
        """Write the records of all splits and `dataset.json`."""
        for split, records in self.records.items():
            write_json_lines(self.root / "records" / f"{split}.jsonl", records)
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.root / "dataset.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def slug(text: str) -> str:
    """`text` as part of a file name: lower case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")

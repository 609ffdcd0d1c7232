"""Masks as contours for radiotherapy (RTSTRUCT), and contours back as masks."""

from __future__ import annotations

import datetime
from functools import partial
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, lps_to_ras
from unimed.io.dicom import open_dicom
from unimed.io.dicom_seg import write_object
from unimed.io.dicom_source import CARRIED, DicomSegError, object_uids, source_of_result
from unimed.io.findings import NOTICE, findings_of
from unimed.io.limits import ReadError
from unimed.structures import Region
from unimed.version import __version__

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def contours_of(mask: np.ndarray) -> list[np.ndarray]:
    """Closed contours [N, 2] (first, second axis; pixel centers are integers) of a 2D mask; holes have their own.

    They run halfway between pixels inside and outside, so that exactly the centres inside are enclosed, counting
    crossings (even-odd), whatever the size of the object.
    """
    from skimage.measure import find_contours

    padded = np.pad(mask.astype(np.float32), 1)
    return [line[:-1] - 1 for line in find_contours(padded, 0.5)]


def filled(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The mask whose pixel centres lie inside an odd number of contours."""
    from skimage.measure import grid_points_in_poly

    mask = np.zeros(shape, bool)
    for contour in contours:
        mask ^= grid_points_in_poly(shape, contour)
    return mask


def as_rtstruct(prediction, image=None, formats=(), *, deidentified: bool = False) -> dict:
    """`NAME.rtstruct.dcm`: planar contours on the slices of the series; holes are contours of their own.

    Raises:
        DicomSegError: the source is no series with a place in the patient, or nothing is drawn.
    """
    source = source_of_result(prediction.geometry, "rtstruct", deidentified)
    if not source.geometry.is_physical:
        raise DicomSegError("rtstruct: the image has no place in the patient; write dicom-seg instead")
    found = [f for f in findings_of(prediction, source_uid=source.series_uid) if f.is_drawn]
    if not found:
        raise DicomSegError("rtstruct: nothing is outlined, and contours cannot say so; write dicom-seg or dicom-sr")
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    made = _head(source, object_uids(prediction, source, "RTSTRUCT", b"".join(_packed(f) for f in found)), deidentified)
    affine = lps_to_ras(source.geometry.affine)
    rois, contour_sets, observations = [], [], []
    for number, finding in enumerate(found, 1):
        mask = source.to_grid(finding.region.mask, prediction.geometry, "rtstruct: the masks")
        roi, lines, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, finding.label
        roi.ReferencedFrameOfReferenceUID = source.images[0].FrameOfReferenceUID
        roi.ROIGenerationAlgorithm, roi.ROIGenerationDescription = "AUTOMATIC", NOTICE
        rois.append(roi)
        lines.ReferencedROINumber, lines.ROIDisplayColor = number, list(finding.color)
        lines.ContourSequence = Sequence(_contour_items(mask, affine, source))
        contour_sets.append(lines)
        seen.ObservationNumber, seen.ReferencedROINumber = number, number
        seen.RTROIInterpretedType, seen.ROIInterpreter = "", ""
        seen.ROIObservationLabel = finding.label[:16]
        coding = Dataset()
        coding.CodeValue, coding.CodingSchemeDesignator = finding.coding.type.value, finding.coding.type.scheme
        coding.CodeMeaning = finding.coding.type.meaning
        seen.RTROIIdentificationCodeSequence = Sequence([coding])
        observations.append(seen)
    made.StructureSetROISequence, made.ROIContourSequence = Sequence(rois), Sequence(contour_sets)
    made.RTROIObservationsSequence = Sequence(observations)
    return {".rtstruct.dcm": partial(write_object, made=made)}


def _packed(finding) -> bytes:
    import hashlib

    return hashlib.sha256(np.packbits(finding.region.mask).tobytes()).digest()


def _contour_items(mask: np.ndarray, affine: np.ndarray, source):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    for k in np.flatnonzero(mask.any((0, 1))):
        for line in contours_of(mask[:, :, k]):
            points = affine[:3, :2] @ line.T + (affine[:3, 2] * k + affine[:3, 3])[:, None]
            item, image = Dataset(), Dataset()
            instance = source.images[0] if source.frames is not None else source.images[k]
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
            if source.frames is not None:
                image.ReferencedFrameNumber = source.frames[k] + 1
            item.ContourImageSequence = Sequence([image])
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(line)
            item.ContourData = [f"{v:.10g}"[:16] for v in points.T.ravel()]
            yield item


def _head(source, uids: dict, deidentified: bool):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian

    first, now = source.images[0], datetime.datetime.now()
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = RTSTRUCT
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uids["sop_instance_uid"]
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in CARRIED:
        if keyword in first:
            setattr(made, keyword, first.get(keyword))
    made.ReferringPhysicianName = made.OperatorsName = ""
    made.Modality, made.SeriesInstanceUID = "RTSTRUCT", uids["series_instance_uid"]
    made.SeriesNumber = int(first.get("SeriesNumber") or 0) + 3000
    made.SeriesDescription = f"unimed contours, {NOTICE}"
    made.InstanceNumber, made.Manufacturer, made.ManufacturerModelName = 1, "unimed", "unimed"
    made.SoftwareVersions = __version__
    made.StructureSetLabel, made.StructureSetDescription = "RESEARCH", NOTICE
    made.StructureSetDate, made.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    made.InstanceCreationDate, made.InstanceCreationTime = made.StructureSetDate, made.StructureSetTime
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = first.FrameOfReferenceUID, ""
    made.ApprovalStatus = "UNAPPROVED"
    frame, study, series = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    series.SeriesInstanceUID = first.SeriesInstanceUID
    references = []
    for image in source.images:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        references.append(reference)
    series.ContourImageSequence = Sequence(references)
    study.RTReferencedSeriesSequence = Sequence([series])
    frame.RTReferencedStudySequence = Sequence([study])
    made.ReferencedFrameOfReferenceSequence = Sequence([frame])
    return made


def read_rtstruct(path: str | Path, geometry: Geometry, shape: tuple[int, int, int]) -> list[Region]:
    """The contours of a structure set as masks in the grid of the series they were drawn on.

    Args:
        geometry, shape: of that series, as `unimed.io.read.read` gives it.

    Raises:
        ReadError: no structure set, or contours off the slices of the grid.
    """
    dataset = open_dicom(Path(path))
    if dataset.get("SOPClassUID") != RTSTRUCT:
        raise ReadError(f"{path}: no structure set (kind {dataset.get('Modality') or 'unknown'})")
    names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in dataset.StructureSetROISequence}
    inverse = np.linalg.inv(lps_to_ras(geometry.affine))
    regions = []
    for roi in dataset.ROIContourSequence:
        mask = np.zeros(shape, bool)
        for contour in roi.get("ContourSequence") or []:
            points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
            places = points @ inverse[:3, :3].T + inverse[:3, 3]
            k = int(round(float(places[:, 2].mean())))
            if np.abs(places[:, 2] - k).max() > 0.1 or not 0 <= k < shape[2]:
                raise ReadError(f"{path}: a contour of {names.get(int(roi.ReferencedROINumber))!r} lies on no slice")
            mask[:, :, k] ^= filled([places[:, :2]], shape[:2])
        regions.append(Region(names.get(int(roi.ReferencedROINumber), ""), mask))
    return regions

"""Results as DICOM structured reports: TID 1500, one group per object, beside a SEG with the masks (highdicom)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from unimed.io.codes import SIDES, Code
from unimed.io.dicom_seg import build_segmentation, write_object
from unimed.io.dicom_source import Source, concept, equipment, object_uids, silent_about_names, source_of_result
from unimed.io.findings import NOTICE, Finding, findings_of, model_name, presence_words, stable_uid
from unimed.markup import plain_text
from unimed.version import __version__

#: (LOINC) procedure by modality; an unspecified one is imaging as such.
_PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
    "": Code("18748-4", "LN", "Diagnostic imaging study"),
}
_XRAY = Code("43468-8", "LN", "XR unspecified body region")
#: What the values of an image are, by modality.
_VALUES = {
    "CT": Code("112031", "DCM", "Attenuation Coefficient"),
    "MR": Code("110852", "DCM", "MR signal intensity"),
    "": Code("420970", "99UNIMED", "Image value"),
}
VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
SHORT_AXIS = Code("103340004", "SCT", "Short axis")
MEAN = Code("373098007", "SCT", "Mean")
DEVIATION = Code("386136009", "SCT", "Standard Deviation")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
CONFIDENCE = Code("U-CONFIDENCE", "99UNIMED", "Confidence of the place")
PRESENCE = Code("121052", "DCM", "Presence of property")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
COMMENT = Code("121106", "DCM", "Comment")
UNITS = {
    "ml": Code("ml", "UCUM", "Milliliter"),
    "mm": Code("mm", "UCUM", "Millimeter"),
    "%": Code("%", "UCUM", "Percent"),
    "[hnsf'U]": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "1": Code("1", "UCUM", "no units"),
}


def as_dicom_sr(
    prediction,
    image=None,
    formats=(),
    *,
    values: np.ndarray | None = None,
    calibrated: bool = False,
    deidentified: bool = False,
    tracking: Sequence[tuple[str, str]] = (),
    comments: Sequence[str] = (),
) -> dict:
    """`NAME.sr.dcm` and, where a region has a mask, the SEG it refers to as `NAME.seg.dcm`; see `build_report`.

    Raises:
        DicomSegError: the source is no DICOM image, or has changed.
        ImportError: highdicom is not installed.
    """
    report, segmentation = build_report(
        prediction, values=values, calibrated=calibrated, deidentified=deidentified, tracking=tracking,
        comments=comments,
    )  # fmt: skip
    files = {".sr.dcm": partial(write_object, made=report)}
    return files if segmentation is None else files | {".seg.dcm": partial(write_object, made=segmentation)}


def build_report(
    prediction,
    *,
    where="dicom-sr",
    values: np.ndarray | None = None,
    calibrated: bool = False,
    deidentified: bool = False,
    tracking: Sequence[tuple[str, str]] = (),
    comments: Sequence[str] = (),
):
    """The report of a prediction and the SEG that it refers to, None without masks.

    Args:
        values: of the image in the grid of the masks; by default read again from the source series.
        calibrated: whether `presence` was calibrated; the report says which.
        deidentified: nothing of the patient, and other UIDs.
        tracking: (identifier, UID) per region, where an earlier study gave them.
        comments: further texts of the whole report.
    """
    try:
        from highdicom import sr
    except ImportError as error:
        raise ImportError('writing DICOM SR needs highdicom: pip install "unimed[dicom]"') from error

    source = source_of_result(prediction.geometry, where, deidentified)
    shared = {"calibrated": calibrated, "deidentified": deidentified, "tracking": tracking}
    segmentation, segments = None, []
    if any(region.mask is not None and region.mask.any() for region in prediction.regions):
        segmentation, segments = build_segmentation(prediction, where=where, source=source, **shared)
    if values is None:
        values = source.values_in_grid(prediction)
    found = findings_of(prediction, source_uid=source.series_uid, values=values, unit=source.unit, tracking=tracking)
    numbers = {finding.number: place for place, finding in enumerate(segments, 1)}
    groups = [
        _group(finding, prediction, source, segmentation, numbers.get(finding.number), calibrated) for finding in found
    ]
    observer = sr.ObserverContext(
        concept(Code("121007", "DCM", "Device")),
        sr.DeviceObserverIdentifyingAttributes(
            uid=stable_uid("device", model_name(prediction), __version__), name="unimed", manufacturer_name="unimed",
            model_name=model_name(prediction), serial_number="0",
        ),
    )  # fmt: skip
    modality = source.modality
    procedure = _PROCEDURES.get(modality) or (_XRAY if modality in ("CR", "DX", "RF", "XA", "MG") else _PROCEDURES[""])
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=concept(procedure),
        imaging_measurements=groups,
        title=concept(Code("126000", "DCM", "Imaging Measurement Report")),
        # The library of images wants elements that only plain slices have.
        referenced_images=source.images if source.frames is None and source.geometry.is_physical else None,
    )
    texts = [text for text in (plain_text(prediction.text), *comments, NOTICE) if text.strip()]
    for text in texts:
        report[0].ContentSequence.append(_comment(text))
    content = hashlib.sha256()
    for part in (prediction.text, *comments, [(f.tracking_uid, f.region.presence, f.measurements) for f in found]):
        content.update(repr(part).encode("utf-8", "surrogatepass"))
    if segmentation is not None:
        content.update(segmentation.SOPInstanceUID.encode())
    with silent_about_names():
        made = sr.Comprehensive3DSR(
            evidence=[*source.images, *([segmentation] if segmentation is not None else [])],
            content=report[0],
            series_number=int(source.images[0].get("SeriesNumber") or 0) + 2000,
            instance_number=1,
            series_description=f"unimed report, {NOTICE}",
            is_complete=True,
            is_final=False,
            is_verified=False,
            **object_uids(prediction, source, "SR", content.digest()),
            **{key: value for key, value in equipment().items() if key in ("manufacturer",)},
        )
    made.SpecificCharacterSet = "ISO_IR 192"
    made.ManufacturerModelName, made.SoftwareVersions, made.DeviceSerialNumber = "unimed", __version__, "0"
    if deidentified:
        made.PatientIdentityRemoved = "YES"
        made.DeidentificationMethod = source.images[0].DeidentificationMethod
    return made, segmentation


def _comment(text: str):
    from highdicom import sr

    return sr.TextContentItem(name=concept(COMMENT), value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def _group(finding: Finding, prediction, source: Source, segmentation, segment: int | None, calibrated: bool):
    """A measurement group: on a segment, on a box in a picture, or on nothing where nothing was outlined."""
    from highdicom import sr

    coding, region = finding.coding, finding.region
    algorithm = sr.AlgorithmIdentification(
        name=model_name(prediction), version=__version__,
        family=concept(Code("123110", "DCM", "Artificial Intelligence")), 
        parameters=[f"phrase={plain_text(region.phrase) or finding.label}"],
    )  # fmt: skip
    sites = []
    if coding.region is not None:
        side = concept(coding.region_modifier) if coding.region_modifier else None
        sites.append(sr.FindingSite(concept(coding.region), laterality=side))
    elif coding.type_modifier is not None:  # an organ is its own site, which is where a report says its side
        sites.append(sr.FindingSite(concept(coding.type), laterality=concept(coding.type_modifier)))
    absent = not finding.is_drawn and region.box_xyxy_px is None
    common = {
        "tracking_identifier": sr.TrackingIdentifier(uid=finding.tracking_uid, identifier=finding.tracking_id),
        "finding_type": concept(coding.type),
        "finding_category": concept(coding.category),
        "finding_sites": sites or None,
        "algorithm_id": algorithm,
        "measurements": _measurements(finding, source, calibrated) or None,
        "qualitative_evaluations": [
            sr.QualitativeEvaluation(concept(PRESENCE), concept(ABSENT if absent else PRESENT))
        ],
    }
    if segment is not None:
        group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            # highdicom's own `from_segmentation` does not find a segment that all frames share.
            referenced_segment=sr.ReferencedSegment(
                str(segmentation.SOPClassUID), str(segmentation.SOPInstanceUID), segment,
                source_series=sr.SourceSeriesForSegmentation(source.series_uid),
            ), **common,
        )  # fmt: skip
    elif region.box_xyxy_px is not None and source.frames is None and len(source.images) == 1:
        x1, y1, x2, y2 = region.box_xyxy_px
        corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], np.float32)
        group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=sr.ImageRegion(
                graphic_type=sr.GraphicTypeValues.POLYLINE, graphic_data=corners,
                source_image=sr.SourceImageForRegion.from_source_image(source.images[0]),
            ), **common,
        )  # fmt: skip
    else:
        group = sr.MeasurementsAndQualitativeEvaluations(**common)
    texts = [finding.sentence, presence_words(region, finding.is_drawn, calibrated)]
    for text in filter(None, map(plain_text, texts)):
        group[0].ContentSequence.append(_comment(text))
    return group


def _measurements(finding: Finding, source: Source, calibrated: bool) -> list:
    from highdicom import sr

    size, made = finding.measurements, []

    def add(name: Code, value: float, unit: str, derivation: Code | None = None):
        made.append(
            sr.Measurement(
                concept(name), float(value), concept(UNITS[unit]), derivation=derivation and concept(derivation)
            )
        )

    if finding.is_drawn and size.physical:
        add(VOLUME, size.volume_ml, "ml")
        add(LONG_AXIS, size.long_axis_mm, "mm")
        add(SHORT_AXIS, size.short_axis_mm, "mm")
    if finding.is_drawn and size.mean is not None:
        what = _VALUES.get(source.modality, _VALUES[""])
        add(what, size.mean, size.unit, MEAN)
        add(what, size.deviation, size.unit, DEVIATION)
    if finding.region.presence is not None:
        add(CERTAINTY, 100 * finding.region.presence, "%")
    if finding.region.confidence is not None:
        add(CONFIDENCE, 100 * finding.region.confidence, "%")
    return made


def side_of(code_value: str) -> str:
    """ "left", "right", "bilateral" or "" for the value of a side's code."""
    return next((name for name, code in SIDES.items() if code.value == code_value), "")

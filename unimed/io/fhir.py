"""Results as FHIR resources: a preliminary DiagnosticReport with an Observation per object (R4B and R5)."""

from __future__ import annotations

import base64
import datetime
import json
import uuid
from functools import partial

from unimed.files import write_text
from unimed.io import dicom_sr
from unimed.io.codes import Code
from unimed.io.dicom_source import DicomSegError, Source, source_of_result
from unimed.io.findings import NOTICE, Finding, findings_of, model_name, presence_words, stable_uid
from unimed.markup import plain_text
from unimed.version import __version__

VERSIONS = ("R4B", "R5")
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
    "99UNIMED": f"urn:oid:{stable_uid('coding scheme 99UNIMED')}",
}
_SECTIONS = "http://terminology.hl7.org/CodeSystem/v2-0074"
#: SNOMED CT attribute "laterality", which joins a structure and its side in one expression.
_LATERALITY = "272741003"


def as_fhir(
    prediction,
    image=None,
    formats=(),
    *,
    fhir_version: str = "R5",
    calibrated: bool = False,
    deidentified: bool = False,
) -> dict:
    """`NAME.fhir.json`: a Bundle of Device, DiagnosticReport and Observations; the status is always preliminary.

    Args:
        fhir_version: "R4B" or "R5".
        calibrated: whether `presence` was calibrated; it is told.
        deidentified: without the number of the patient and with other UIDs of the study.

    Raises:
        ValueError: another version.
    """
    if fhir_version not in VERSIONS:
        raise ValueError(f"FHIR version {fhir_version!r}; known are {', '.join(VERSIONS)}")
    try:
        source = source_of_result(prediction.geometry, "fhir", deidentified)
    except DicomSegError:
        source = None  # a result of another format has no study to refer to
    values = source.values_in_grid(prediction) if source is not None else None
    unit = source.unit if source is not None else "1"
    series = source.series_uid if source is not None else getattr(getattr(prediction, "image", None), "name", "")
    found = findings_of(prediction, source_uid=series, values=values, unit=unit)
    resources = _resources(prediction, found, source, str(series), fhir_version, calibrated, deidentified)
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "timestamp": resources[1]["issued"],
        "entry": [{"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource} for resource in resources],
    }
    return {".fhir.json": partial(write_text, text=json.dumps(bundle, indent=1, ensure_ascii=False))}


def _id(*parts) -> str:
    return str(uuid.UUID(int=int(stable_uid("fhir", *parts).removeprefix("2.25."))))


def _concept(code: Code | None, text: str = "", side: Code | None = None) -> dict:
    coding = {"system": _SYSTEMS.get(code.scheme, code.scheme), "code": code.value, "display": code.meaning}
    if side is not None and code.scheme == "SCT":
        coding["code"] = f"{code.value}:{_LATERALITY}={side.value}"
        coding["display"] = f"{code.meaning}, {side.meaning.lower()}"
    return {"coding": [coding]} | ({"text": text} if text else {})


def _quantity(value: float, unit: str, words: str = "") -> dict:
    code = "mL" if unit == "ml" else unit
    return {"value": round(value, 6), "unit": words or code, "system": _SYSTEMS["UCUM"], "code": code}


def _resources(prediction, found, source: Source | None, series: str, version: str, calibrated: bool, hidden: bool):
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    device = {"resourceType": "Device", "id": _id("device", model_name(prediction), __version__)}
    device["manufacturer"] = "unimed"
    if version == "R5":
        device["name"] = [{"value": model_name(prediction), "type": "user-friendly-name"}]
    else:
        device["deviceName"] = [{"name": model_name(prediction), "type": "user-friendly-name"}]
    device["version"] = [{"value": __version__}]
    device["note"] = [{"text": NOTICE}]
    subject, study = {}, []
    if source is not None:
        first = source.images[0]
        if first.get("PatientID") and not hidden:
            subject = {"subject": {"type": "Patient", "identifier": {"value": str(first.PatientID)}}}
        uid = {"system": "urn:dicom:uid", "value": f"urn:oid:{first.StudyInstanceUID}"}
        study = [{"type": "ImagingStudy", "identifier": uid}]
    observations = [_observation(f, prediction, device, subject, study, now, calibrated, series) for f in found]
    text = plain_text(prediction.text).strip()
    report = {
        "resourceType": "DiagnosticReport",
        "id": _id("report", series, model_name(prediction), *(f.tracking_uid for f in found)),
        "status": "preliminary",
        "category": [
            {
                "coding": [
                    {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}
                ]
            }
        ],
        "code": _concept(Code("18748-4", "LN", "Diagnostic imaging study")),
        **subject,
        "issued": now,
        "performer": [{"display": f"{model_name(prediction)}, unsigned, {NOTICE}"}],
        "conclusion": f"{text}\n({NOTICE})" if text else NOTICE,
    }
    if observations:
        report["result"] = [{"reference": f"urn:uuid:{o['id']}"} for o in observations]
        seen = [f for f in found if f.is_drawn or f.region.box_xyxy_px is not None]
        if seen:
            report["conclusionCode"] = [_concept(f.coding.type, f.label) for f in seen]
    if study:
        report["study" if version == "R5" else "imagingStudy"] = study
    if text:
        data = base64.b64encode(text.encode()).decode()
        report["presentedForm"] = [{"contentType": "text/plain; charset=utf-8", "data": data}]
    return [device, report, *observations]


def _observation(finding: Finding, prediction, device, subject, study, now, calibrated: bool, series: str) -> dict:
    coding, region, size = finding.coding, finding.region, finding.measurements
    made = {
        "resourceType": "Observation",
        "id": _id("observation", finding.tracking_uid),
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{finding.tracking_uid}"}],
        "status": "preliminary",
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "imaging"}]}
        ],
        "code": _concept(coding.type, finding.label),
        **subject,
        "issued": now,
        "device": {"reference": f"urn:uuid:{device['id']}"},
    }
    if study:
        made["derivedFrom"] = study
    if coding.region is not None:
        made["bodySite"] = _concept(coding.region, side=coding.region_modifier)
    elif coding.category.value == "91723000":
        made["bodySite"] = _concept(coding.type, side=coding.type_modifier)
    components = []

    def add(name: Code, **value):
        components.append({"code": _concept(name), **value})

    if finding.is_drawn and size.physical:
        made["valueQuantity"] = _quantity(size.volume_ml, "ml")
        add(dicom_sr.LONG_AXIS, valueQuantity=_quantity(size.long_axis_mm, "mm"))
        add(dicom_sr.SHORT_AXIS, valueQuantity=_quantity(size.short_axis_mm, "mm"))
    else:
        there = finding.is_drawn or region.box_xyxy_px is not None
        made["valueCodeableConcept"] = _concept(dicom_sr.PRESENT if there else dicom_sr.ABSENT)
    if finding.is_drawn and size.mean is not None:
        add(dicom_sr.MEAN, valueQuantity=_quantity(size.mean, size.unit))
        add(dicom_sr.DEVIATION, valueQuantity=_quantity(size.deviation, size.unit))
    if region.presence is not None:
        add(dicom_sr.CERTAINTY, valueQuantity=_quantity(100 * region.presence, "%"))
    if components:
        made["component"] = components
    notes = [finding.sentence, presence_words(region, finding.is_drawn, calibrated), NOTICE]
    made["note"] = [{"text": text} for text in map(plain_text, notes) if text.strip()]
    return made

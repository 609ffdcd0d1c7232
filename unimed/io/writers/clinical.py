"""Results that a hospital's software opens; see docs/clinic.md for their options."""

from __future__ import annotations

from unimed.io.annotations import as_coco, as_label_studio, as_labelme
from unimed.io.dicom_rendered import as_parametric_map, as_secondary_capture
from unimed.io.dicom_seg import as_dicom_seg
from unimed.io.dicom_sr import as_dicom_sr
from unimed.io.fhir import as_fhir
from unimed.io.html_report import as_html_report
from unimed.io.rtstruct import as_rtstruct
from unimed.io.seg_nrrd import as_label_table, as_seg_nrrd
from unimed.registry import WRITERS

CLINICAL_WRITERS = {
    "dicom-seg": as_dicom_seg,
    "dicom-sr": as_dicom_sr,
    "rtstruct": as_rtstruct,
    "parametric-map": as_parametric_map,
    "secondary-capture": as_secondary_capture,
    "html": as_html_report,
    "fhir": as_fhir,
    "seg-nrrd": as_seg_nrrd,
    "labels": as_label_table,
    "coco": as_coco,
    "labelme": as_labelme,
    "label-studio": as_label_studio,
}
for _name, _writer in CLINICAL_WRITERS.items():
    WRITERS.register_module(_name, module=_writer)

"""Formats of results that a hospital's software opens, and where their writers are."""

from __future__ import annotations

import importlib
from pathlib import Path

#: Format -> (module below `unimed.io`, function). A writer takes a prediction, `image` and its options, checks that it
#: can be written, and returns {suffix: function that writes the file at a path and returns the path written}.
CLINICAL_FORMATS = {
    "dicom-seg": ("dicom_seg", "as_dicom_seg"),
    "dicom-sr": ("dicom_sr", "as_dicom_sr"),
    "parametric-map": ("dicom_pictures", "as_parametric_map"),
    "secondary-capture": ("dicom_pictures", "as_secondary_capture"),
    "html": ("html_report", "as_html_report"),
    "fhir": ("fhir", "as_fhir"),
    "rtstruct": ("rtstruct", "as_rtstruct"),
    "seg-nrrd": ("seg_nrrd", "as_seg_nrrd"),
    "labels": ("seg_nrrd", "as_label_table"),
    "coco": ("annotations", "as_coco"),
    "labelme": ("annotations", "as_labelme"),
    "label-studio": ("annotations", "as_label_studio"),
}


def clinical_files(form: str, prediction, image=None, **options) -> dict:
    """{suffix: write(path)} of a format; what cannot be written is an error before anything is."""
    module, function = CLINICAL_FORMATS[form]
    return getattr(importlib.import_module(f"unimed.io.{module}"), function)(prediction, image=image, **options)


def save_clinical(form: str, prediction, folder, name: str, image=None, **options) -> list[Path]:
    """Write a format; the paths written."""
    files = clinical_files(form, prediction, image, **options)
    return [write(Path(folder) / f"{name}{suffix}") for suffix, write in files.items()]

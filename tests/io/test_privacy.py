"""What of the patient stands in each output: the table of docs/results.md, and with `deidentified` nothing."""

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from clinical import blobs, found_in, write_source
from small_volumes import grid

from unimed.io.dicom_source import CARRIED
from unimed.io.images import ImageSource
from unimed.io.result import Prediction
from unimed.io.writers.clinical import CLINICAL_WRITERS
from unimed.structures import Region

pytest.importorskip("highdicom")
DOCS = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
#: Said of patient and study in the images: element -> what stands there.
SAID = {
    "PatientName": "Doe^Jane", "PatientID": "P-77", "PatientBirthDate": "19500203", "StudyDate": "20250102",
    "StudyTime": "101112.131415", "AccessionNumber": "ACC9-8", "StudyID": "STUDY-7",
    "StudyInstanceUID": "1.2.826.0.1.777.9", "SeriesInstanceUID": "1.2.826.0.1.777.8",
    "FrameOfReferenceUID": "1.2.826.0.1.777.3", "InstitutionName": "Saint Elsewhere",
    "PatientComments": "SECRET comment",
    "StudyDescription": "SECRET study", "SeriesDescription": "SECRET series", "ReferringPhysicianName": "SECRET^Doc",
    "OtherPatientIDs": "SECRET-2", "DeviceSerialNumber": "SECRET-7", "ProtocolName": "SECRET protocol",
}  # fmt: skip
#: Formats that hold elements of `CARRIED` and the UIDs of the images.
FULL = ("dicom-seg", "dicom-sr", "rtstruct", "parametric-map", "secondary-capture")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    array, geometry = write_source(folder / "Doe^Jane", grid((0.8, 0.9, 2.5)), **SAID)
    masks = blobs(array.shape, 2)
    regions = (Region("left kidney", masks[0], presence=0.9), Region("cyst", masks[1]), Region("stone", presence=0.1))
    image = ImageSource(str(folder / "Doe^Jane" / "000.dcm"), ("window 40 400",), shape=array.shape, geometry=geometry)
    return Prediction("A cyst is seen.", regions, geometry, model_reference="/home/doe/m", image=image), array


def written(result, form, folder, **options):
    prediction, array = result
    if form in ("coco", "labelme", "label-studio"):  # 2D formats
        flat = tuple(Region(r.phrase, None if r.mask is None else r.mask[..., 1], presence=r.presence)
                     for r in prediction.regions)  # fmt: skip
        prediction = Prediction(prediction.text, flat, None, model_reference="/home/doe/m", image=prediction.image)
    if form == "parametric-map":
        masks = [region.mask for region in prediction.regions]
        options["probabilities"] = [None if mask is None else mask.astype(np.float32) for mask in masks]
    return b"".join(path.read_bytes() for path in prediction.save(folder, "x", (form,), **options))


def expected(form):
    if form in FULL:
        names = set(CARRIED) & set(SAID) | set(UIDS)
        return names
    return {"PatientID", "StudyInstanceUID"} if form == "fhir" else set()


@pytest.mark.parametrize("form", [*CLINICAL_WRITERS, "json", "nifti", "npz"])
def test_each_format_says_what_the_table_says_and_nothing_else(result, tmp_path, form):
    content = written(result, form, tmp_path)
    said = {name for name, text in SAID.items() if found_in(content, [text])}
    allowed = expected(form) | ({"FrameOfReferenceUID"} & said if form in FULL else set())
    assert said <= allowed and b"SECRET" not in content and b"/home/doe" not in content
    if form in FULL:
        assert {"PatientID", "PatientName", "StudyInstanceUID"} <= said
    row = re.search(rf"^\| .*`{form}`.*\|$", DOCS, re.M)
    assert row, f"docs/results.md says what of the patient stands in {form!r}"


@pytest.mark.parametrize("form", [*CLINICAL_WRITERS, "json", "nifti", "npz"])
def test_deidentified_says_nothing(result, tmp_path, form):
    content = written(result, form, tmp_path, deidentified=True)
    assert [name for name, text in SAID.items() if found_in(content, [text])] == []


def test_deidentified_objects_of_one_study_still_belong_together(result, tmp_path):
    prediction, _ = result
    paths = prediction.save(tmp_path, "x", ("dicom-seg", "dicom-sr", "rtstruct"), deidentified=True)
    made = [pydicom.dcmread(path) for path in paths]
    assert len({str(one.StudyInstanceUID) for one in made}) == 1
    assert all(one.PatientIdentityRemoved == "YES" and one.DeidentificationMethod for one in made[:2])
    assert len({str(one.FrameOfReferenceUID) for one in made if "FrameOfReferenceUID" in one}) == 1


@pytest.mark.parametrize("form", FULL)
def test_no_warning_holds_a_name(tmp_path, form, recwarn):
    array, geometry = write_source(tmp_path / "s", grid((0.8, 0.9, 2.5)), PatientName="Oneword")
    prediction = Prediction("", (Region("liver", blobs(array.shape, 1)[0]),), geometry)
    options = {"probabilities": [np.zeros(array.shape, np.float32)]} if form == "parametric-map" else {}
    prediction.save(tmp_path, "x", (form,), **options)
    assert not [w for w in recwarn if "Oneword" in str(w.message)]


def test_unknown_options_are_refused(result, tmp_path):
    with pytest.raises(ValueError, match="deidentifed"):
        result[0].save(tmp_path / "x", "x", ("dicom-seg",), deidentifed=True)
    assert not (tmp_path / "x").exists()
    (path,) = result[0].save(tmp_path, formats=("json",), deidentified=True)
    assert "Doe" not in path.name and "000.dcm" not in path.read_text() + path.name

"""Structured reports: checked by dciodvfy and dcmqi, read back equal."""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import small_volumes
from clinical import blobs, ct_series, dicom_errors, found_in, identifying, source_cases, tool, write_source

from unimed.io.dicom_result import read_report, read_segmentation
from unimed.io.limits import ReadError
from unimed.io.measurements import measure
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.structures import Region

pytest.importorskip("highdicom")

TEXT = "The left kidney measures 12.5 cm. A cyst of the right kidney is seen! Läsion 肝臓; no gallstone."


def result_of(array, geometry):
    kidney, cyst, other = blobs(array.shape)
    regions = (
        Region("left kidney", kidney, presence=0.93, phrase_span=(4, 15)),
        Region("cyst of the right kidney", cyst, presence=1 / 3, confidence=0.25),
        Region("gallstone", presence=0.02),
        Region("Läsion 肝臓", other),
    )
    return Prediction(TEXT, regions, geometry, model_reference="/home/someone/unimed-3b")


def assert_equal(back, prediction):
    assert back.text == prediction.text and back.model_reference == "unimed-3b"
    assert len(back.regions) == len(prediction.regions)
    for one, other in zip(back.regions, prediction.regions, strict=True):
        assert one.phrase == other.phrase
        assert (one.mask is None) == (other.mask is None)
        assert one.mask is None or np.array_equal(one.mask, other.mask)
        for name in ("presence", "confidence", "box_xyxy_px"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9), name
        if other.phrase_span:
            assert one.phrase_span == other.phrase_span


@pytest.mark.parametrize(("name", "grid", "kind"), source_cases()[::4], ids=[c[0] for c in source_cases()[::4]])
def test_a_report_of_any_series_is_valid_and_comes_back_equal(tmp_path, name, grid, kind):
    array, geometry = write_source(tmp_path / "s", grid, kind)
    prediction = result_of(array, geometry)
    report, segmentation = prediction.save(tmp_path / "o", "case", ("dicom-sr",))
    assert dicom_errors(report) == [] and dicom_errors(segmentation) == []
    assert_equal(read_report(report, geometry), prediction)


def test_dcmqi_reads_what_was_measured(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    prediction = result_of(array, geometry)
    report, _ = prediction.save(tmp_path, "case", ("dicom-sr", "dicom-seg"))
    command = [tool("tid1500reader"), "--inputDICOM", report, "--outputMetadata", tmp_path / "m.json"]
    subprocess.run(command, check=True, capture_output=True)
    groups = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["Measurements"]
    kidney, cyst = groups[0], groups[1]
    assert kidney["Finding"]["CodeValue"] == "64033007" and kidney["Laterality"]["CodeValue"] == "7771000"
    assert cyst["FindingSite"]["CodeMeaning"] == "Kidney" and cyst["Laterality"]["CodeValue"] == "24028007"
    said = {
        (i["quantity"]["CodeMeaning"], i.get("derivationModifier", {}).get("CodeMeaning", "")): (
            float(i["value"]), i["units"]["CodeValue"]
        )
        for i in kidney["measurementItems"]
    }  # fmt: skip
    mask = prediction.regions[0].mask
    size = measure(mask, geometry)
    volume = mask.sum() * 0.8 * 0.9 * 2.5 / 1000
    assert said["Volume", ""] == (pytest.approx(volume), "ml")
    assert said["Long axis", ""] == (pytest.approx(size.long_axis_mm), "mm")
    assert said["Attenuation Coefficient", "Mean"] == (pytest.approx(array[mask].mean(), rel=1e-5), "[hnsf'U]")
    assert said["Attenuation Coefficient", "Standard Deviation"][0] == pytest.approx(array[mask].std(), rel=1e-5)
    assert said["Certainty of Finding", ""] == (pytest.approx(93), "%")


def comments(report):
    import pydicom

    found = []

    def walk(items):
        for item in items:
            if item.get("TextValue"):
                found.append(item.TextValue)
            walk(item.get("ContentSequence") or [])

    walk(pydicom.dcmread(report).ContentSequence)
    return found


@pytest.mark.parametrize("calibrated", [False, True])
def test_sentences_and_certainty_are_told_in_words(tmp_path, calibrated):
    array, geometry = ct_series(tmp_path / "s")
    report, _ = result_of(array, geometry).save(tmp_path, "case", ("dicom-sr",), calibrated=calibrated)
    told = comments(report)
    assert "The left kidney measures 12.5 cm." in told and "A cyst of the right kidney is seen!" in told
    kind = "calibrated" if calibrated else "not calibrated"
    assert f"looked for, not outlined; presence 0.02 ({kind})" in told and "research use only" in told


def test_boxes_in_a_picture_are_regions_of_the_image(tmp_path):
    made = small_volumes.dataset("1.2.840.10008.5.1.4.1.1.1.1", "DX")
    small_volumes.set_pixels(made, np.arange(63, dtype=np.int16).reshape(7, 9))
    small_volumes.save(tmp_path, [made], ["x.dcm"])
    _, geometry = read(tmp_path / "x.dcm")
    mask = np.zeros((7, 9), bool)
    mask[2:4, 5:9] = True
    regions = (Region("heart", box_xyxy_px=(1.5, 2.0, 8.0, 6.25), confidence=0.5), Region("nodule", mask))
    prediction = Prediction("Heart is enlarged.", regions, geometry, model_reference="unimed-3b")
    report, _ = prediction.save(tmp_path / "o", "x", ("dicom-sr",))
    assert dicom_errors(report) == []
    assert_equal(read_report(report, geometry), prediction)


def test_tracking_of_an_earlier_study_is_kept(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    prediction = replace(result_of(array, geometry), regions=result_of(array, geometry).regions[:1])
    report, segmentation = prediction.save(tmp_path, "case", ("dicom-sr",), tracking=[("lesion 1", "1.2.3.99")])
    assert b"1.2.3.99" in report.read_bytes() and b"1.2.3.99" in segmentation.read_bytes()


def test_deidentified_reports_hold_nothing_of_the_patient(tmp_path):
    import pydicom

    array, geometry = ct_series(tmp_path / "s")
    header = pydicom.dcmread(geometry.header["files"][0])
    paths = result_of(array, geometry).save(tmp_path / "o", "case", ("dicom-sr",), deidentified=True)
    for path in paths:
        assert dicom_errors(path) == [] and found_in(path.read_bytes(), identifying(header)) == []
    plain = result_of(array, geometry).save(tmp_path / "p", "case", ("dicom-sr",))
    assert all(found_in(path.read_bytes(), ["P-77", "Doe^Jane"]) for path in plain)


def test_faults_are_named(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    report, segmentation = result_of(array, geometry).save(tmp_path / "o", "case", ("dicom-sr",))
    with pytest.raises(ReadError, match="no DICOM segmentation"):
        read_segmentation(report)
    with pytest.raises(ReadError, match="no imaging measurements"):
        read_report(segmentation)
    regions, own = read_segmentation(segmentation)
    assert [int(r.mask.sum()) for r in regions] == [
        int(r.mask.sum()) for r in result_of(array, geometry).regions if r.mask is not None
    ]
    segmentation.unlink()
    with pytest.raises(ReadError, match="not in its folder"):
        read_report(report)

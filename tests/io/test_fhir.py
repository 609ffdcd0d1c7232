import base64
import json

import numpy as np
import pytest
from clinical import blobs, ct_series, found_in, identifying

from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.structures import Region

TEXT = "The left kidney is large. No gallstone. Läsion 肝臓."


def result_of(array, geometry):
    masks = blobs(array.shape)
    return Prediction(
        TEXT,
        (Region("left kidney", masks[0], presence=0.9), Region("cyst of the right kidney", masks[1]),
         Region("gallstone", presence=0.02), Region("Läsion 肝臓", masks[2])),
        geometry, model_reference="/home/me/unimed-3b",
    )  # fmt: skip


def saved(prediction, folder, **options):
    (path,) = prediction.save(folder, "case", ("fhir",), **options)
    return json.loads(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("version", ["R4B", "R5"])
def test_the_bundle_is_valid_and_preliminary(tmp_path, version):
    bundle_module = pytest.importorskip(f"fhir.resources{'.R4B' if version == 'R4B' else ''}.bundle")
    array, geometry = ct_series(tmp_path / "s")
    for prediction in (result_of(array, geometry), Prediction("Nothing.", ()), Prediction("", (Region("liver"),))):
        values, path = saved(prediction, tmp_path / "o", fhir_version=version)
        bundle_module.Bundle.model_validate_json(path.read_text(encoding="utf-8"))
        for entry in values["entry"]:
            assert entry["resource"].get("status", "preliminary") == "preliminary"


def test_numbers_codes_and_sides_are_those_of_the_result(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    prediction = result_of(array, geometry)
    values, _ = saved(prediction, tmp_path / "o")
    device, report, *seen = (entry["resource"] for entry in values["entry"])
    assert [r["reference"] for r in report["result"]] == [f"urn:uuid:{o['id']}" for o in seen]
    assert "unimed-3b" in device["name"][0]["value"] and "/home" not in json.dumps(values)
    assert base64.b64decode(report["presentedForm"][0]["data"]).decode() == TEXT
    kidney, cyst, stone, other = seen
    volume = prediction.regions[0].mask.sum() * 0.8 * 0.9 * 2.5 / 1000
    assert kidney["valueQuantity"]["value"] == pytest.approx(volume) and kidney["valueQuantity"]["code"] == "mL"
    assert kidney["bodySite"]["coding"][0]["code"] == "64033007:272741003=7771000"
    assert cyst["code"]["coding"][0]["code"] == "367643001"
    assert cyst["bodySite"]["coding"][0]["code"] == "64033007:272741003=24028007"
    assert stone["valueCodeableConcept"]["coding"][0]["code"] == "272519000"
    mean = next(c for c in kidney["component"] if c["code"]["coding"][0]["display"] == "Mean")
    assert mean["valueQuantity"]["value"] == pytest.approx(array[prediction.regions[0].mask].mean(), rel=1e-4)
    assert mean["valueQuantity"]["code"] == "[hnsf'U]"
    assert other["code"]["coding"][0]["system"].startswith("urn:oid:2.25.")
    again, _ = saved(prediction, tmp_path / "o2")
    assert [e["fullUrl"] for e in again["entry"]] == [e["fullUrl"] for e in values["entry"]]


def test_patients_are_named_by_their_number_alone_and_deidentified_not_at_all(tmp_path):
    import pydicom

    array, geometry = ct_series(tmp_path / "s")
    header = pydicom.dcmread(geometry.header["files"][0])
    _, path = saved(result_of(array, geometry), tmp_path / "o")
    assert set(found_in(path.read_bytes(), identifying(header))) == {"P-77", str(header.StudyInstanceUID)}
    _, path = saved(result_of(array, geometry), tmp_path / "o", deidentified=True)
    assert found_in(path.read_bytes(), identifying(header)) == []
    with pytest.raises(ValueError, match="known are R4B, R5"):
        saved(result_of(array, geometry), tmp_path / "o", fhir_version="STU3")


def test_results_of_pictures_have_no_study(tmp_path):
    mask = np.ones((3, 4), bool)
    values, _ = saved(Prediction("Polyp.", (Region("polyp", mask),), Geometry.pixels()), tmp_path)
    assert "study" not in values["entry"][1]["resource"]
    assert values["entry"][2]["resource"]["valueCodeableConcept"]["coding"][0]["display"] == "Present"

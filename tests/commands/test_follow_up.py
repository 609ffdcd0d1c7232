"""`unimed compare` on two synthetic studies of one patient."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from clinical import dicom_errors, found_in
from small_volumes import grid, save, slices, turn

from unimed.commands.cli import main
from unimed.io.dicom_result import read_report, tracking_of
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.io.write import write_nifti
from unimed.structures import Region

pytest.importorskip("highdicom")


def body():
    place = Path(__file__).parents[1] / "io" / "test_registration.py"
    specification = importlib.util.spec_from_file_location("registration_test", place)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def places(geometry, shape):
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return indices @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]


def ball(geometry, shape, center_mm, radius_mm):
    return ((places(geometry, shape) - center_mm) ** 2).sum(-1) <= radius_mm**2


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    module = body()
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn((0.03, -0.02, 0.06)), (4, -5, 3)
    geometry = grid((1.5, 1.5, 3), origin=(-36, -33, -30))
    # The first lesion grows, the second vanishes, a third is new.
    lesions = {"a": [((12, 6, 5), 6), ((-14, -4, -10), 6)], "b": [((12, 6, 5), 9), ((-18, 8, 12), 6)]}
    for name, where in lesions.items():
        move = motion if name == "b" else np.eye(4)
        values = module.scanned(geometry, move)
        header = {"StudyInstanceUID": f"1.2.3.{ord(name)}", "SeriesInstanceUID": f"1.2.3.{ord(name)}.1",
                  "RescaleSlope": "1", "RescaleIntercept": "0", "PatientName": "Doe^Jane"}  # fmt: skip
        made = slices(values.astype(np.int16), geometry, **header)
        save(folder / name, made)
        array, found = read(folder / name)
        masks = [ball(found, array.shape, move[:3, :3] @ center + move[:3, 3], r) for center, r in where]
        result = Prediction("", tuple(Region("liver lesion", mask) for mask in masks), found)
        result.save(folder, name, ("dicom-seg",))
        write_nifti(folder / f"{name}.nii.gz", array, found)
        write_nifti(folder / f"{name}-labels.nii.gz", (masks[0] + 2 * masks[1]).astype(np.uint8), found)
    return folder


def test_two_dicom_studies_are_compared_and_share_their_tracking(tmp_path, studies, capsys):
    arguments = ["compare", str(studies / "a"), str(studies / "b"), "--out", str(tmp_path), "--labels"]
    assert main([*arguments, str(studies / "a.seg.dcm"), str(studies / "b.seg.dcm")]) == 0
    told = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert sorted(row["kind"] for row in told["changes"]) == ["matched", "new", "vanished"]
    matched = next(row for row in told["changes"] if row["kind"] == "matched")
    assert matched["long_axis_mm_percent"] == pytest.approx(50, abs=15) and matched["distance_mm"] < 3
    assert told["recist"]["category"] == "PD" and "**PD**" in capsys.readouterr().out
    assert told["registration"]["rotation_degrees"] == pytest.approx(np.degrees(0.07), abs=1.5)
    assert (tmp_path / "compare.png").stat().st_size > 1000
    for name in ("baseline", "follow_up"):
        for kind in ("seg", "sr"):
            assert dicom_errors(tmp_path / f"{name}.{kind}.dcm") == []
    first, second = (tracking_of(tmp_path / f"{name}.seg.dcm") for name in ("baseline", "follow_up"))
    assert len(set(first) & set(second)) == 1 and len(set(first) | set(second)) == 3
    assert set(first) & set(second) and (matched["tracking_uid"] in {uid for _, uid in first})
    assert "RECIST 1.1" in read_report(tmp_path / "follow_up.sr.dcm").text


def test_label_maps_and_deidentified_outputs(tmp_path, studies):
    labels = [str(studies / f"{name}-labels.nii.gz") for name in "ab"]
    images = [str(studies / f"{name}.nii.gz") for name in "ab"]
    arguments = ["--labels", *labels, "--phrase", "liver lesion", "--out"]
    assert main(["compare", *images, *arguments, str(tmp_path / "n")]) == 0
    assert sorted(p.name for p in (tmp_path / "n").iterdir()) == ["compare.json", "compare.md", "compare.png"]
    folders = [str(studies / name) for name in "ab"]
    assert main(["compare", *folders, *arguments, str(tmp_path / "d"), "--deidentified"]) == 0
    header = pydicom.dcmread(next((studies / "a").iterdir()))
    texts = ["Doe^Jane", str(header.StudyInstanceUID), str(header.SeriesInstanceUID)]
    assert all(found_in(path.read_bytes(), texts) == [] for path in (tmp_path / "d").iterdir())


def test_faults_are_one_line(tmp_path, studies, capsys):
    other = tmp_path / "o.nii.gz"
    write_nifti(other, np.ones((5, 5, 5), np.uint8), grid((1, 1, 1)))
    arguments = [str(studies / "a.nii.gz"), str(studies / "b.nii.gz"), "--out", str(tmp_path / "x")]
    assert main(["compare", *arguments, "--labels", str(other), str(other)]) == 1
    assert "o.nii.gz" in capsys.readouterr().err and not (tmp_path / "x").exists()

"""The row schema: columns, names of older files, patients nobody can be found by."""

import json
import multiprocessing
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest

from unimed.evaluation import cases
from unimed.evaluation.cases import ALIASES, COLUMNS, case_row, patient_group, project, project_salt, sample_row
from unimed.evaluation.rows import located_row
from unimed.evaluation.tables import read_cases, write_cases
from unimed.geometry import Geometry
from unimed.metrics.calibration import Cases
from unimed.structures import Region, Sample


def sample(name="c", patient="Jane Doe", task="box"):
    image = np.zeros((40, 60), np.uint8)
    return Sample((image,), Geometry.pixels(), name, "CT", labels={"task": task}, patient_id=patient, source="set")


def test_every_row_begins_with_the_same_columns():
    row = sample_row(sample(), "mask", "Liver", dice=0.5)
    assert tuple(row)[: len(COLUMNS)] == COLUMNS and list(row.values())[2:8] == [
        "set",
        "CT",
        "box",
        "liver",
        "mask",
        0.5,
    ]
    with pytest.raises(ValueError, match="'case_id' is the former name of 'case'"):
        case_row("c", "mask", case_id="c")
    with pytest.raises(ValueError, match="unknown kind of row 'picture'"):
        case_row("c", "picture")


def test_files_of_older_versions_are_read_under_the_names_of_today(tmp_path):
    old = {"case_id": "c", "expression": "liver", "painted": 3, "said": "yes", "doubt_aurc": 1.0}
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n", encoding="utf-8-sig")
    today = {"case": "c", "target": "liver", "predicted_voxels": 3, "predicted": "yes", "uncertainty_aurc": 1.0}
    assert read_cases(tmp_path / "old.jsonl") == [old | today], "as written, and under the names of today"
    new = {"case": "today", "target": "a\u2028b", "case_id": "then"}
    assert read_cases(write_cases(tmp_path / "new.jsonl", [new])) == [new]
    assert set(ALIASES.values()).isdisjoint(ALIASES)


def test_rows_of_boxes_name_nobody_and_feed_a_calibration():
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:50] = True
    found = Region("mass", box_xyxy_px=(30, 10, 50, 25), confidence=0.7, box_std_px=(1, 1, 1, 1))
    row = located_row(sample(), "mass", 0, Region("mass", mask=mask), found, (40, 60))
    assert row["true_box_xyxy_px"] == [30, 10, 50, 20] and row["iou"] == pytest.approx(2 / 3)
    assert "Jane" not in json.dumps(row)
    other = located_row(sample("d"), "mass", 0, Region("mass", mask=mask), None, (40, 60))
    assert other["group"] == row["group"] and other["predicted_box_xyxy_px"] is None and other["iou"] == 0
    learned = Cases.read([row, other])
    assert len(learned.truth) == 1 and learned.skipped == 1 and learned.places.shape == (1, 4)


def test_patients_are_hashed_with_the_salt_of_their_project(tmp_path, monkeypatch):
    monkeypatch.delenv(cases.SALT_VARIABLE, raising=False)
    first, second = tmp_path / "a" / "work_dirs" / "run1", tmp_path / "a" / "work_dirs" / "run2" / "test"
    with project(first):
        one = patient_group("1234567")
    with project(second):
        again = patient_group("1234567")
    with project(tmp_path / "b"):
        other = patient_group("1234567")
    assert one == again != other and one not in sha256(b"1234567").hexdigest() and len(one) == 16
    salt = tmp_path / "a" / "work_dirs" / cases.SALT_FILE
    assert salt.stat().st_mode & 0o077 == 0 and salt.read_text().strip().encode() == project_salt(second)
    monkeypatch.setenv(cases.SALT_VARIABLE, "of the configuration")
    with project(first):
        assert patient_group("1234567") not in (one, other)
    monkeypatch.delenv(cases.SALT_VARIABLE)
    salt.write_text("short\n")
    with pytest.raises(ValueError, match="patient_salt: a salt needs at least 16"), project(first):
        patient_group("1234567")
    with project(tmp_path / "never"):
        pass
    assert not (tmp_path / "never").exists(), "a project nobody hashed a patient for leaves nothing behind"


def test_processes_that_start_together_share_one_salt(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        salts = pool.map(project_salt, [tmp_path] * 12)
    assert all(a == b for a, b in pairwise(salts)) and [p.name for p in tmp_path.iterdir()] == [cases.SALT_FILE]

"""The command that checks a record folder: table, problems, exit code."""

import json

import numpy as np
import pytest
from PIL import Image

from unimed.commands.prepare import check_data


def record(name, part, patient, **changes):
    entry = {
        "id": name,
        "task": "referring",
        "image": f"images/{name}.png",
        "patient_id": patient,
        "question": "Segment the lesion.",
        "answer": "<p> lesion </p> [SEG].",
        "regions": [
            {"phrase": "lesion", "mask": f"masks/{name}.png", "box_xyxy_px": None, "present": True}
            | {"phrase_span": [4, 10]}
        ],
        "split": part,
    }
    return {**entry, **changes}


def make(root, train, test):
    for folder in ("records", "images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    for number, entry in enumerate([*train, *test]):
        image = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(image).save(root / f"images/{entry['id']}.png")
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / f"masks/{entry['id']}.png")
    for split, entries in {"train": train, "test": test}.items():
        (root / "records" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, entries)))


def test_sound_folder(tmp_path, capsys):
    make(tmp_path, [record("a", "train", "p1")], [record("b", "test", "p2")])
    assert check_data([str(tmp_path)]) == 0
    assert "| test | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        (dict(patient_id="p1"), "patient leakage"),
        (dict(answer="no token"), "count mismatch"),
        (dict(image="images/gone.png"), "missing file"),
        (dict(image="images/a.png", patient_id="p3"), "duplicate"),
        (dict(id="a"), "duplicate"),
        (dict(split="train"), "patient leakage"),
        (dict(split="Validation"), "patient leakage"),
        (dict(answer="<p> a lesion </p> [SEG]."), "count mismatch"),  # the span no longer spells the phrase
    ],
)
def test_problems_are_named(tmp_path, capsys, changes, kind):
    make(tmp_path, [record("a", "train", "p1")], [record("b", "test", "p2", **changes)])
    assert check_data([str(tmp_path)]) == 1
    assert f": {kind}: " in capsys.readouterr().out


def test_declared_slide_is_a_remark(tmp_path, capsys):
    shared = record("b", "test", "p1", note="same slide as training, another tile")
    make(tmp_path, [record("a", "train", "p1")], [shared])
    assert check_data([str(tmp_path)]) == 0
    assert "remark: 1 sources are in several splits" in capsys.readouterr().out


def test_empty_and_misfitting_masks(tmp_path, capsys):
    make(tmp_path, [record("a", "train", "p1"), record("c", "train", "p1")], [record("b", "test", "p2")])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "masks/a.png")
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "masks/c.png")
    assert check_data([str(tmp_path)]) == 1
    assert "| train | 2 | 0 | 2 |" in capsys.readouterr().out


def test_unknown_folder(tmp_path, capsys):
    assert check_data([str(tmp_path)]) == 1
    assert "neither records" in capsys.readouterr().err


@pytest.mark.parametrize(("pattern", "words"), [("([", "not a regular expression"), ("abc", "needs one group")])
def test_a_pattern_that_finds_no_patient_is_refused(tmp_path, capsys, pattern, words):
    with pytest.raises(SystemExit) as error:
        check_data([str(tmp_path), "--patient-pattern", pattern])
    assert error.value.code == 1 and words in capsys.readouterr().err


def test_a_box_without_area_names_its_record(tmp_path, capsys):
    region = {"phrase": "a", "mask": None, "box_xyxy_px": [5, 1, 2, 4], "present": True, "phrase_span": None}
    make(tmp_path, [record("turned", "train", "p", answer="<p> a </p> [BOX].", regions=[region])], [])
    assert check_data([str(tmp_path)]) == 1
    assert "record turned: region 'a': box_xyxy_px" in capsys.readouterr().out


def test_a_patient_in_two_splits_is_told_by_records_and_not_by_name(tmp_path, capsys):
    make(tmp_path, [record("first", "train", "Jane^Doe")], [record("second", "test", "Jane^Doe")])
    assert check_data([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "one patient is in test, train (test: record second, train: record first)" in said and "Jane" not in said

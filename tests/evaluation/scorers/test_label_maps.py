"""Scores of result folders, and the tool that prints them."""

import json
from pathlib import Path

import numpy as np
import pytest

from unimed.commands.biomedparse import score_volumes
from unimed.evaluation.scorers.label_maps import case_name, score_folder
from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.io.write import write_nifti, write_npz, write_nrrd

PROMPTS = {"1": "CT imaging of the spleen", "2": "the liver", "3": "left kidney"}


def box(shape, *places):
    labels = np.zeros(shape, np.uint8)
    for label, where in places:
        labels[where] = label
    return labels


SPLEEN, LIVER = np.s_[1:3, 2:8, 2:8], np.s_[1:4, 10:14, 2:8]


@pytest.fixture
def folders(tmp_path):
    shape, spacing = (5, 16, 16), np.array([1.0, 1.0, 3.0])
    truth = box(shape, (1, SPLEEN), (2, LIVER))
    prompts = np.array(json.dumps(PROMPTS))
    write_npz(tmp_path / "truth" / "CT_a.gt.npz", {"gts": truth, "spacing": spacing, "text_prompts": prompts})
    write_npz(tmp_path / "truth" / "CT_b.gt.npz", {"gts": truth, "spacing": spacing, "text_prompts": prompts})
    said = box(shape, (1, SPLEEN), (3, np.s_[4, 10:14, 10:14]))
    existence = np.array([[0, 0.9, 0.8, 0, 0], [0, 0.1, 0.2, 0, 0], [0.3, 0, 0, 0, 0.6]], np.float32)
    arrays = {"segs": said, "existence": existence, "text_prompts": prompts}
    write_npz(tmp_path / "said" / "CT_a.img.npz", arrays)
    return tmp_path


def test_targets_existence_and_missing_results(folders):
    scores = score_folder(folders / "said", folders / "truth", surfaces=False)
    rows = {(row["case"], row["target"]): row for row in scores.targets}
    assert rows["CT_a", "spleen"]["dice"] == 1 and rows["CT_a", "liver"]["dice"] == 0
    assert rows["CT_a", "left kidney"]["dice"] == 0 and rows["CT_a", "left kidney"]["predicted_voxels"] == 16
    assert np.isnan(rows["CT_b", "left kidney"]["dice"])  # neither there nor painted
    assert scores.problems == [f"CT_b: no result in {folders / 'said'}; scored as empty"]
    volumes = [row for row in scores.presence if row["level"] == "volume"]
    assert [(round(r["probability"], 1), r["present"]) for r in volumes] == [(0.9, True), (0.2, True), (0.6, False)]
    assert len(scores.presence) == 3 + 15
    challenge = scores.challenge[0]
    assert challenge["DSC"] == pytest.approx(1 / 3) and challenge["false_labels"] == 1
    published = score_folder(folders / "said", folders / "truth", surfaces=False, compat="reference")
    assert published.challenge[0]["DSC"] == pytest.approx(1 / 2)
    perfect = score_folder(folders / "said", folders / "truth", surfaces=False, empty="perfect")
    assert {(r["case"], r["target"]): r["dice"] for r in perfect.targets}["CT_b", "left kidney"] == 1


def test_spacing_follows_the_axes(folders):
    pytest.importorskip("monai")
    row = score_folder(folders / "said", folders / "truth", tolerances_mm=(0.5,)).targets[0]
    assert row["nsd_0.5mm"] == 1
    shifted = np.zeros((5, 16, 16), np.uint8)
    shifted[2:4, 2:8, 2:8] = 1  # one slice lower: 3 mm off above and below
    write_npz(folders / "said" / "CT_a.img.npz", {"segs": shifted})
    row = score_folder(folders / "said", folders / "truth", tolerances_mm=(2.9, 3.1)).targets[0]
    assert row["nsd_2.9mm"] < 0.9 and row["nsd_3.1mm"] > 0.99


def test_nifti_pairs_with_json_beside_them(folders):
    geometry = Geometry(np.diag((1.0, 1, 3, 1)))
    truth = box((16, 16, 5), (1, np.s_[2:8, 2:8, 1:3]))
    write_nifti(folders / "nt" / "MR_x.nii.gz", truth, geometry)
    write_nifti(folders / "np" / "MR_x.nii.gz", truth, geometry)
    summary = {
        "targets": [{"label": 1, "prompt": "brain", "presence": 0.7}, {"label": 2, "prompt": "liver", "presence": 0}]
    }
    (folders / "np" / "MR_x.json").write_text(json.dumps(summary))
    scores = score_folder(folders / "np", folders / "nt", surfaces=False)
    assert [(r["target"], r["modality"]) for r in scores.targets] == [("brain", "MR"), ("liver", "MR")]
    assert scores.targets[0]["dice"] == 1 and [r["present"] for r in scores.presence] == [True, False]


def test_instances(folders):
    truth = box((3, 12, 12), (1, np.s_[:, 1:5, 1:5]), (2, np.s_[:, 5:9, 1:5]), (3, np.s_[:, 1:5, 7:11]))
    said = box((3, 12, 12), (5, np.s_[:, 1:5, 1:5]), (6, np.s_[:, 5:9, 1:5]))
    prompts = np.array(json.dumps({"1": "nuclei", "instance_label": 1}))
    write_npz(folders / "it" / "Microscopy_n.npz", {"gts": truth, "text_prompts": prompts})
    write_npz(folders / "is" / "Microscopy_n.npz", {"segs": said})
    scores = score_folder(folders / "is", folders / "it", surfaces=False)
    assert not scores.targets and scores.instances[0]["tp_50"] == 2 and scores.instances[0]["fn_50"] == 1
    assert scores.instances[0]["f1_50"] == pytest.approx(0.8) == scores.challenge[0]["F1"]
    # As published touching ones merge: two said become one, which fits no true one.
    merged = score_folder(folders / "is", folders / "it", surfaces=False, compat="reference")
    assert merged.challenge[0]["F1"] < 0.8


def test_the_tool(folders, capsys):
    assert score_volumes([str(folders / "said"), str(folders / "truth"), "--no-surfaces"]) == 2
    out = capsys.readouterr().out
    assert "| CT       | spleen" in out and "left out of every mean" in out and "no result in" in out
    report = json.loads((folders / "said" / "scores" / "scores.json").read_text())
    assert report["counts"] == {"predicted_on_absent": 1, "missed": 3, "both_empty": 1, "pairs": 6}
    assert len((folders / "said" / "scores" / "cases.jsonl").read_text().splitlines()) == 8
    assert score_volumes([str(folders / "said"), str(folders / "gone")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_names_and_faults(folders):
    assert (
        case_name(Path("CT_a.img.npz")) == case_name(Path("x/CT_a.gt.npz")) == case_name(Path("CT_a.nii.gz")) == "CT_a"
    )
    write_npz(folders / "said" / "CT_b.npz", {"segs": np.zeros((2, 2, 2), np.uint8)})
    problems = score_folder(folders / "said", folders / "truth", surfaces=False).problems
    assert len(problems) == 1 and "shape (2, 2, 2), the truth has (5, 16, 16)" in problems[0]
    with pytest.raises(ValueError, match="unknown policy"):
        score_folder(folders / "said", folders / "truth", empty="best")


def test_images_may_lie_beside_their_truths(tmp_path):
    np.savez(tmp_path / "a.gt.npz", gts=np.ones((2, 4, 4), np.uint8))
    np.savez(tmp_path / "a.img.npz", imgs=np.ones((2, 4, 4), np.uint8))
    (tmp_path / "out").mkdir()
    assert score_folder(tmp_path / "out", tmp_path, surfaces=False, prompts=None).problems[0].startswith("a: no result")


LABELS = box((8, 7, 6), (1, np.s_[1:4, 1:3, 1:3]), (2, np.s_[5:7, 4:6, 3:5]))
GRID = Geometry([[1.0, 0, 0, 3], [0, 2, 0, -4], [0, 0, 3, 5], [0, 0, 0, 1]])


def score(tmp_path, labels, geometry, suffix=".nii.gz"):
    write_nifti(tmp_path / "t" / "c.nii.gz", LABELS, GRID)
    write = write_nrrd if suffix == ".nrrd" else write_nifti
    write(tmp_path / "p" / f"c{suffix}", np.ascontiguousarray(labels), geometry)
    (tmp_path / "prompts.json").write_text('{"1": "x", "2": "y"}')
    return score_folder(tmp_path / "p", tmp_path / "t", prompts=tmp_path / "prompts.json", surfaces=False)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::3])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_the_same_place_in_other_axes_scores_one(tmp_path, orientation, suffix):
    scores = score(tmp_path, *reorient(LABELS, GRID, orientation), suffix)
    assert [row["dice"] for row in scores.targets] == [1, 1] and not scores.problems and not scores.remarks


def test_a_finer_grid_is_compared_by_nearest_labels_and_said(tmp_path):
    fine = Geometry(GRID.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]]))
    scores = score(tmp_path, LABELS.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine)
    assert [row["dice"] for row in scores.targets] == [1, 1] and "another grid" in scores.remarks[0]


def test_the_same_array_at_another_place_scores_less_or_is_refused(tmp_path):
    affine = GRID.affine.copy()
    affine[0, 3] += 2
    scores = score(tmp_path, LABELS, Geometry(affine))
    assert max(row["dice"] for row in scores.targets) < 0.5 and scores.remarks
    affine[0, 3] += 500
    scores = score(tmp_path, LABELS, Geometry(affine))
    assert not scores.targets and "do not overlap" in scores.problems[0] and "c.nii.gz" in scores.problems[0]


def test_labels_are_compared_by_their_names_where_both_sides_tell_them(folders):
    geometry = Geometry(np.diag((1.0, 1, 3, 1)))
    truth = box((16, 16, 5), (1, np.s_[2:8, 2:8, 1:3]), (2, np.s_[9:14, 2:8, 1:4]), (6, np.s_[2:5, 10:15, 1:4]))
    said = np.select([truth == 1, truth == 2, truth == 6], [3, 1, 2], 0).astype(np.uint8)
    (folders / "p.json").write_text(json.dumps({"1": "spleen", "2": ["liver", "the liver"], "6": "left kidney"}))
    targets = [{"label": 1, "prompt": "The  liver", "presence": 0.7}, {"label": 2, "prompt": "left kidney",
               "presence": 0.8}, {"label": 3, "prompt": "spleen", "presence": 0.9}]  # fmt: skip
    regions = [{"phrase": t["prompt"], "label": {"value": t["label"], "file": "CT_x.nii.gz"}} for t in targets]
    write_nifti(folders / "nt" / "CT_x.nii.gz", truth, geometry)
    write_nifti(folders / "np" / "CT_x.nii.gz", said, geometry)
    for written in ({"targets": targets}, {"regions": regions}):
        (folders / "np" / "CT_x.json").write_text(json.dumps(written))
        scores = score_folder(folders / "np", folders / "nt", prompts=folders / "p.json", surfaces=False)
        assert [row["dice"] for row in scores.targets] == [1, 1, 1] and scores.challenge[0]["DSC"] == 1
        assert "3 is 1 (spleen)" in scores.remarks[0]
    # An unknown name does not take the place of a known one; a wrong name costs.
    targets[2]["prompt"] = "stomach"
    (folders / "np" / "CT_x.json").write_text(json.dumps({"targets": targets}))
    scores = score_folder(folders / "np", folders / "nt", prompts=folders / "p.json", surfaces=False)
    assert [row["dice"] for row in scores.targets] == [0, 1, 1]
    # Without names of the truth numbers are compared, and that is said.
    assert "compared by number" in score_folder(folders / "np", folders / "nt", surfaces=False).remarks[0]

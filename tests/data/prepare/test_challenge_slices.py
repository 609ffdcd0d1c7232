"""Challenge NPZ files: recorded slices, faults, and the round trip through the training format."""

import json

import numpy as np
import pytest
from golden_files import SMALL

from unimed.commands.common import Parser
from unimed.data.prepare import biomedparse, challenge_slices
from unimed.data.readers.biomedparse import BiomedParseDataset

PROMPTS = {"1": ["liver in CT", "the liver"], "300": "left kidney", "4": "spleen", "instance_label": 0}


def volume(path, prompts=PROMPTS, **changes):
    image = np.random.default_rng(len(path.name)).integers(0, 255, (6, 20, 26), dtype=np.uint8)
    labels = np.zeros((6, 20, 26), np.uint16)
    labels[1:4, 5:10, 5:15], labels[3:5, 12:16, 10:20] = 1, 300
    arrays = {"imgs": image, "gts": labels, "spacing": np.array([1, 1, 5.0]), "text_prompts": np.array(prompts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


def prepare(folder, *options):
    parser = Parser("")
    biomedparse.add_arguments(parser)
    return biomedparse.run(parser.parse_args([str(folder), "--size", "32", *options]))


@pytest.mark.parametrize("case", ["anis.ax0", "iso.ax0", "iso.ax1", "iso.ax2", "inst.ax0", "one.ax0"])
def test_slices_equal_the_recorded_ones(case):
    recorded = np.load(SMALL / "biomedparse" / "slice_export.npz")
    export = json.loads((SMALL / "biomedparse" / "processing.json").read_text())["export"]
    name, axis = case.split(".ax")
    image, labels = recorded[f"{name}.imgs"], recorded[f"{name}.gts"]
    slices = challenge_slices.cut(image, labels, int(axis), 64, compat="reference")
    for z, (channels, mask, ids) in zip(range(len(recorded[f"{case}.rgb"])), slices, strict=False):
        assert np.array_equal(channels, recorded[f"{case}.rgb"][z]) and np.array_equal(
            mask, recorded[f"{case}.mask"][z]
        )
        if axis == "0" and name != "inst":
            assert [int(v) for v in ids if v] == export[f"process2d.{name}"]["annotations_axis0"][z]["class_ids"]


def test_which_volumes_are_cut_three_ways():
    export = json.loads((SMALL / "biomedparse" / "processing.json").read_text())["export"]
    for name, shape in {"anis": (4, 30, 41), "iso": (24, 28, 26), "one": (1, 20, 24)}.items():
        recorded = export[f"process2d.{name}"]
        assert challenge_slices._even(shape, tuple(recorded["spacing"][::-1])) == (recorded["n_axis1"] > 0)


def test_round_trip(tmp_path):
    volume(tmp_path / "train" / "CT_case_1.npz")
    assert prepare(tmp_path) == 0
    dataset = BiomedParseDataset(tmp_path / "slices", prompts=3, absent=None)
    assert len(dataset) == 6
    sample = dataset[3]
    assert sample.images[0].shape == (32, 32, 3) and sample.modality == "CT"
    there = dict(zip(sample.labels["targets"], (r.presence for r in sample.regions), strict=True))
    assert there == {"1": 1.0, "300": 1.0, "4": 0.0}
    # (slice, previous, next): the middle channel of a slice is the first channel of the one before.
    assert np.array_equal(sample.images[0][..., 1], dataset[2].images[0][..., 0])
    assert np.array_equal(sample.images[0][..., 2], dataset[4].images[0][..., 0])


def test_instances_keep_their_numbers(tmp_path):
    volume(tmp_path / "train" / "Microscopy_a.npz", {"1": "nuclei", "instance_label": 1})
    assert prepare(tmp_path) == 0
    sample = BiomedParseDataset(tmp_path / "slices", prompts=2, absent=None)[3]
    assert set(np.unique(sample.labels["instances"])) == {0, 1, 300}
    assert [r.phrase for r in sample.regions] == ["nuclei", "nuclei"] and sample.regions[0].mask.sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(imgs=np.full((6, 20, 26), -5, np.int16)), "bring them to 0..255"),
        (dict(imgs=np.array({"a": 1})), "pickled objects"),
        (dict(gts=np.zeros((6, 20, 26), np.uint8)), "gts are empty"),
        (dict(gts=np.full((6, 20, 26), 7, np.uint8)), "labels [7] have no prompt"),
        (dict(gts=np.ones((5, 20, 26), np.uint8)), "gts are (5, 20, 26)"),
        (dict(gts=np.ones((6, 20, 26), np.float32)), "must be integers"),
        (dict(spacing=None), "no spacing"),
        (dict(text_prompts=None), "holds no `text_prompts`"),
        (dict(text_prompts=np.array({"one": "liver"})), "no positive label number"),
        (dict(text_prompts=np.array({"1": ""})), "none of them empty"),
        (dict(text_prompts=np.array({"instance_label": 0})), "is empty"),
        (dict(text_prompts=np.array(print, dtype=object)), "cannot be read without running it"),
    ],
)
def test_faults_are_named(tmp_path, capsys, changes, message):
    volume(tmp_path / "train" / "CT_case_1.npz", **changes)
    assert prepare(tmp_path) == 1
    assert message in capsys.readouterr().out and not (tmp_path / "slices").exists()


def test_the_same_volume_in_two_splits(tmp_path, capsys):
    volume(tmp_path / "train" / "CT_p1_a.npz")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "CT_p1_b.npz").write_bytes((tmp_path / "train" / "CT_p1_a.npz").read_bytes())
    assert prepare(tmp_path, "--patient-pattern", "CT_([^_]+)_", "--check-only") == 1
    out = capsys.readouterr().out
    assert "identical voxels" in out and "one patient in test, train" in out

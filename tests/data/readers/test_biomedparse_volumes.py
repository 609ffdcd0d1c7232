"""Volumes with prompts as samples."""

import numpy as np
import pytest

from unimed.data.readers.biomedparse_volumes import ParseVolumes
from unimed.data.readers.unibiomed import TreeError


def save(folder, name="CT_a", depth=3, truth=True, instances=0, **more):
    folder.mkdir(parents=True, exist_ok=True)
    table = np.empty((), object)
    table[()] = {"1": "liver", "4": "spleen", "instance_label": instances}
    labels = np.zeros((depth, 6, 8), np.uint16)
    labels[0, 1:3, 1:3], labels[0, 4:6, 4:6] = 1, 300 if instances else 0
    arrays = {"imgs": np.zeros((depth, 6, 8), np.uint8), "text_prompts": table, "spacing": np.ones(3)}
    np.savez(folder / f"{name}.npz", **arrays | ({"gts": labels} if truth else {}) | more)


def test_present_and_absent_targets_and_instances(tmp_path):
    save(tmp_path / "a")
    sample = ParseVolumes(tmp_path / "a")[0]
    assert [(r.phrase, r.presence, r.mask is None) for r in sample.regions] == [
        ("liver", 1.0, False),
        ("spleen", 0.0, True),
    ]
    assert sample.modality == "CT" and sample.images[0].shape == (3, 6, 8)
    assert len(ParseVolumes(tmp_path / "a", prompts=1)[0].regions) == 1
    save(tmp_path / "b", instances=1)
    sample = ParseVolumes(tmp_path / "b")[0]
    assert set(np.unique(sample.labels["instances"])) == {0, 1, 300} and sample.regions[0].mask.sum() == 8


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ParseVolumes(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TreeError, match="no \\*.npz"):
        ParseVolumes(tmp_path / "empty")
    save(tmp_path / "a", truth=False)
    with pytest.raises(TreeError, match="no truth for CT_a.npz"):
        ParseVolumes(tmp_path / "a", truth=tmp_path / "empty")
    np.savez(tmp_path / "empty" / "CT_a.npz", gts=np.zeros((2, 6, 8), np.uint8))
    with pytest.raises(TreeError, match="truth is"):
        ParseVolumes(tmp_path / "a", truth=tmp_path / "empty")[0]

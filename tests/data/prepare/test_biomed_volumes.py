"""Volumes and label maps become a 3D set that the reader opens."""

import json

import numpy as np
import pytest

from unimed.data.checks import check
from unimed.data.prepare.biomed_volumes import build, run
from unimed.data.readers.unibiomed import BiomedVolumeDataset
from unimed.geometry import Geometry
from unimed.io.write import write_nifti

NAMES = {"1": "liver in abdomen CT", "3": "spleen in abdomen CT"}


@pytest.fixture
def folders(tmp_path):
    geometry = Geometry(np.diag((-1.0, 2.0, 3.0, 1.0)))
    for number in range(2):
        array = np.random.default_rng(number).integers(-200, 300, (8, 10, 6)).astype(np.int16)
        truth = np.zeros(array.shape, np.uint8)
        truth[2:4, 3:6, 1:4] = 1
        truth[6, 8, 5] = 3 * number
        write_nifti(tmp_path / "images" / f"v{number}.nii.gz", array, geometry)
        write_nifti(tmp_path / "labels" / f"v{number}.nii.gz", truth, geometry)
    return tmp_path


def test_slices_and_masks_are_those_of_the_volume(folders):
    build(folders / "images", folders / "labels", NAMES, folders / "set", site="abdomen")
    dataset = BiomedVolumeDataset(folders / "set")
    assert [item[:2] for item in dataset.items] == [("v0", "1"), ("v1", "1"), ("v1", "3")]
    sample = dataset[0]
    assert sample.images[0].shape == (6, 10, 8) and sample.images[0].dtype == np.uint8
    mask = sample.regions[0].mask
    assert mask.any(axis=(1, 2)).tolist() == [False, True, True, True, False, False]
    # Rows run to the back and columns to the left; the axes of this volume run to the left, the front and the head.
    assert mask[1, 4:7, 2:4].all() and mask.sum() == 18
    assert sample.conversation[0][1] == "Please segment liver in abdomen CT."
    assert check(folders / "set").ok


def test_what_does_not_fit_is_named(folders, capsys):
    (folders / "names.json").write_text(json.dumps(NAMES))
    build(folders / "images", folders / "labels", NAMES, folders / "set")
    with pytest.raises(FileExistsError, match="meta_train"):
        build(folders / "images", folders / "labels", NAMES, folders / "set")
    with pytest.raises(FileExistsError, match="other names"):
        build(folders / "images", folders / "labels", NAMES, folders / "set", split="test")
    assert not (folders / "set" / "meta_test.json").exists()
    write_nifti(folders / "labels" / "v1.nii.gz", np.zeros((8, 10, 7), np.uint8), Geometry(np.eye(4)))
    with pytest.raises(ValueError, match="not in the grid"):
        build(folders / "images", folders / "labels", NAMES, folders / "other")
    assert list((folders / "other").iterdir()) == []
    (folders / "labels" / "v0.nii.gz").unlink()
    import argparse

    arguments = dict(
        images=folders / "images", labels=folders / "labels", names=folders / "names.json", site="", modality=""
    )
    assert run(argparse.Namespace(**arguments, out=folders / "new", split="train", workers=1)) == 1
    assert "no label map for v0" in capsys.readouterr().err

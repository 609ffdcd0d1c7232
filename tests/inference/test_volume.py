import nibabel
import numpy as np
import pytest
from sam2_models import say, tiny_sam2_model  # noqa: E402

from unimed.geometry import (
    Geometry,  # noqa: E402
    reorient,  # noqa: E402
)
from unimed.inference.volume import Slices, VolumeError, predict_volume  # noqa: E402
from unimed.io.write import write_nifti  # noqa: E402

RNG = np.random.default_rng(0)
ANSWER = "<p> x </p> [SEG].<|end|>"


def volume_in(orientation):
    """A volume of 6 axial slices in some order of axes; the voxels are the same places in the patient."""
    array = (RNG.random((6, 30, 40)) * 1000 - 500).astype(np.int16)
    affine = np.diag([3.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]  # axis 0 to S, axis 1 to A, axis 2 to R
    array, geometry = reorient(array, Geometry(affine), orientation)
    return np.ascontiguousarray(array), geometry


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SAR", "AIL"])
def test_masks_come_back_in_the_grid_of_the_source(orientation, tmp_path):
    global RNG
    RNG = np.random.default_rng(0)
    reference, _ = volume_in("SPL")
    RNG = np.random.default_rng(0)
    array, geometry = volume_in(orientation)
    path = write_nifti(tmp_path / "v.nii.gz", array, geometry)
    model = say(tiny_sam2_model(), ANSWER)
    expected = predict_volume(model, reference, "segment the nuclei", max_new_tokens=20).regions[0].mask
    found = predict_volume(say(model, ANSWER), path, "segment the nuclei", max_new_tokens=20)
    region = found.regions[0]
    assert region.mask.shape == array.shape and np.allclose(found.geometry.affine, geometry.affine)
    assert expected.any() and (reorient(region.mask, found.geometry, "SPL")[0] == expected).all()
    # What is written lies where the source lies.
    (result,) = found.save(tmp_path, formats=("nifti",))
    assert result != path
    written = nibabel.load(result)
    assert np.allclose(written.affine, geometry.affine) and (np.asarray(written.dataobj) > 0).sum() == region.mask.sum()


def test_slices_share_one_window_and_are_made_when_asked_for():
    array = np.zeros((4, 10, 10), dtype=np.float32)
    array[2] = np.linspace(1, 100, 100).reshape(10, 10)
    array[3] = array[2] / 2
    slices = Slices(array)
    assert slices[0].max() == 0 and slices[2].dtype == np.uint8 and slices[2].max() == 255
    assert 100 < slices[3].max() < 150
    assert (Slices(array.astype(np.uint8))[2] == array[2].astype(np.uint8)).all()
    assert Slices(array > 1)[2].max() == 255
    hu = np.full((2, 5, 5), 40.0)
    assert abs(int(Slices(hu, "abdomen")[0][0, 0]) - 128) <= 1


def test_planes_and_lists_of_slices():
    array, geometry = volume_in("RAS")
    model = say(tiny_sam2_model(), ANSWER)
    for plane in ("axial", "coronal", "sagittal"):
        texts = ["segment the nuclei", "segment the lesion"]
        found = predict_volume(say(model, ANSWER), (array, geometry), texts, plane=plane, keys=2, max_new_tokens=20)
        assert [one.regions[0].mask.shape for one in found] == [array.shape] * 2
    frames = [RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(3)]
    one = predict_volume(say(model, ANSWER), frames, "segment the nuclei", compat="reference", max_new_tokens=20)
    assert one.regions[0].mask.shape == (3, 20, 30)


@pytest.mark.parametrize(
    ("volume", "options", "words"),
    [
        (np.zeros((3, 4)), {}, "no volume"),
        (np.zeros((3, 4, 5, 6)), {}, "no volume"),
        (np.zeros((0, 4, 5)), {}, "no volume"),
        (np.full((2, 4, 5), np.nan), {}, "NaN"),
        (7, {}, "int"),
        (np.zeros((2, 4, 5)), {"plane": "oblique"}, "oblique"),
        (np.zeros((2, 4, 5)), {"site": "elbow"}, "elbow"),
    ],
)
def test_what_is_no_volume_is_refused(volume, options, words):
    with pytest.raises(VolumeError, match=words):
        predict_volume(tiny_sam2_model(), volume, "what", **options)

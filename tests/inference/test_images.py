"""Grey values of BiomedParse: recorded windows, percentiles and pictures."""

import numpy as np
import pytest
from golden_files import SMALL

from unimed.geometry import Geometry
from unimed.inference.images import v1_image
from unimed.io.errors import ImageError, WindowError
from unimed.io.images import load
from unimed.io.windows import choose_window
from unimed.io.write import write_nifti
from unimed.models.boltzformer.configuration import V1_WINDOWS_HU, V2_WINDOWS_HU

RECORDED = np.load(SMALL / "biomedparse" / "pictures.npz")


@pytest.mark.parametrize("name", ["bone", "brain", "lung", "soft tissue"])
def test_windows_of_v2(name):
    # The recording is not rounded to 8 bits.
    grey = choose_window(RECORDED["ct_hu"], modality="CT", site=name, windows=V2_WINDOWS_HU)(RECORDED["ct_hu"])
    assert np.abs(grey - RECORDED[f"v2_ct.{name.replace(' ', '_')}"]).max() <= 0.5


@pytest.mark.parametrize(("ignore_zero", "name"), [(False, "all"), (True, "nonzero")])
def test_percentiles_of_v2(ignore_zero, name):
    mapping = choose_window(RECORDED["mr"], modality="MRI", ignore_zero=ignore_zero)
    assert np.abs(mapping(RECORDED["mr"]) - RECORDED[f"v2_percentile_{name}"]).max() <= 0.5


@pytest.mark.parametrize("site", sorted(V1_WINDOWS_HU))
def test_ct_pictures_of_v1(site):
    picture = v1_image(RECORDED["ct_hu"], "CT", site, compat="reference")
    assert picture.shape == (1024, 1024, 3)
    assert np.abs(picture[::8, ::8, 0].astype(int) - RECORDED[f"v1_ct.{site}.every8"]).max() <= 1


def test_other_pictures_of_v1():
    tall = np.pad(RECORDED["mr"], ((0, 11), (0, 0)))
    for name, picture in {"v1_mr": RECORDED["mr"], "v1_mr_tall": tall}.items():
        made = v1_image(picture, "MRI", compat="reference")[::8, ::8, 0].astype(int)
        assert np.abs(made - RECORDED[f"{name}.every8"]).max() <= 1
    colour = v1_image(RECORDED["rgb"], compat="reference")[::8, ::8].astype(int)
    for channel in range(3):
        assert np.abs(colour[..., channel] - RECORDED[f"v1_rgb.ch{channel}.every8"]).max() <= 1
    with pytest.raises(WindowError, match="needs a site"):
        v1_image(RECORDED["ct_hu"], "CT")


def test_a_window_is_not_stretched_by_default():
    flat = np.full((8, 8), 50.0)
    assert v1_image(flat, "CT", "abdomen", size=8).max() == 128
    assert v1_image(flat, "CT", "abdomen", size=8, compat="reference").max() == 0


def test_a_slice_is_turned_to_how_it_is_looked_at(tmp_path):
    stored = np.zeros((6, 4, 1), np.uint8)  # to the right, to the front, to the head
    stored[5, 3, 0] = 9  # right, front
    image = load(write_nifti(tmp_path / "s.nii", stored, Geometry(np.eye(4))))
    assert image.pixels.shape == (4, 6) and image.pixels[0, 0] == 9 and image.geometry.orientation == "PLS"
    with pytest.raises(ImageError, match="is a volume"):
        load(write_nifti(tmp_path / "v.nii", np.zeros((6, 4, 2), np.uint8), Geometry(np.eye(4))))

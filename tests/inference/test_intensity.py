"""Grey values: recorded windows and percentiles, and how they are chosen."""

import numpy as np
import pytest
from golden_files import SMALL

from unimed.geometry import Geometry
from unimed.inference.intensity import WINDOWS_HU, IntensityError, choose_intensity
from unimed.inference.pictures import V1_WINDOWS_HU, read_picture, v1_picture
from unimed.io.read import ReadError
from unimed.io.windows import modality_of
from unimed.io.write import write_nifti

RECORDED = np.load(SMALL / "biomedparse" / "pictures.npz")


@pytest.mark.parametrize("name", sorted(WINDOWS_HU))
def test_windows_of_v2(name):
    # The recording is not rounded to 8 bits.
    grey = choose_intensity(RECORDED["ct_hu"][None], modality="CT", site=name)(RECORDED["ct_hu"])
    assert np.abs(grey - RECORDED[f"v2_ct.{name.replace(' ', '_')}"]).max() <= 0.5


@pytest.mark.parametrize(("ignore_zero", "name"), [(False, "all"), (True, "nonzero")])
def test_percentiles_of_v2(ignore_zero, name):
    mapping = choose_intensity(RECORDED["mr"][None], modality="MRI", ignore_zero=ignore_zero)
    assert np.abs(mapping(RECORDED["mr"]) - RECORDED[f"v2_percentile_{name}"]).max() <= 0.5


def test_counted_percentiles_equal_numpy():
    volume = np.random.default_rng(0).integers(-300, 900, (5, 30, 31)).astype(np.int16)
    mapping = choose_intensity(volume, percentiles=(3, 91.7))
    assert (mapping.low, mapping.high) == pytest.approx(tuple(np.percentile(volume[volume != 0], (3, 91.7))))


def test_choice():
    hounsfield, eight = np.array([[[-1000, 0, 900]]], np.int16), np.zeros((1, 2, 2), np.uint8)
    ct = Geometry(np.eye(4), header={"modality": "CT"})
    assert str(choose_intensity(hounsfield, ct)) == "CT window soft tissue [-160, 240]"
    assert str(choose_intensity(hounsfield, ct, prompts=("left lung", "lung lesion"))).startswith("CT window lung")
    assert str(choose_intensity(hounsfield, ct, prompts=("skull",), site="bone")).startswith("CT window bone")
    assert choose_intensity(hounsfield, modality="MRI").rule == "percentiles"
    assert choose_intensity(hounsfield, ct, window=(0, 100)).high == 50
    assert choose_intensity(eight, ct)(eight) is eight
    assert choose_intensity(eight.astype(np.float32))(eight).max() == 0  # one value everywhere
    for bad in (dict(site="knee"), dict(window=(0, 0)), dict(percentiles=(60, 40))):
        with pytest.raises(IntensityError):
            choose_intensity(hounsfield, ct, **bad)


def test_modalities_by_name():
    names = {"CT_AMOS_1": "CT", "MR_BraTS": "MR", "MRI-T1-Gd": "MR", "US_Cardiac": "US", "Microscopy_x": "Microscopy"}
    names |= {"PET_a": "PET", "X-Ray": "X-ray", "case7": "", "usual": "", "ultrasound": "US", "CTA": ""}
    assert {name: modality_of(name) for name in names} == names


@pytest.mark.parametrize("site", sorted(V1_WINDOWS_HU))
def test_ct_pictures_of_v1(site):
    picture = v1_picture(RECORDED["ct_hu"], "CT", site, compat="reference")
    assert picture.shape == (1024, 1024, 3)
    assert np.abs(picture[::8, ::8, 0].astype(int) - RECORDED[f"v1_ct.{site}.every8"]).max() <= 1


def test_other_pictures_of_v1():
    tall = np.pad(RECORDED["mr"], ((0, 11), (0, 0)))
    for name, picture in {"v1_mr": RECORDED["mr"], "v1_mr_tall": tall}.items():
        made = v1_picture(picture, "MRI", compat="reference")[::8, ::8, 0].astype(int)
        assert np.abs(made - RECORDED[f"{name}.every8"]).max() <= 1
    colour = v1_picture(RECORDED["rgb"], compat="reference")[::8, ::8].astype(int)
    for channel in range(3):
        assert np.abs(colour[..., channel] - RECORDED[f"v1_rgb.ch{channel}.every8"]).max() <= 1
    with pytest.raises(IntensityError, match="needs a site"):
        v1_picture(RECORDED["ct_hu"], "CT")


def test_a_window_is_not_stretched_by_default():
    flat = np.full((8, 8), 50.0)
    assert v1_picture(flat, "CT", "abdomen", size=8).max() == 128
    assert v1_picture(flat, "CT", "abdomen", size=8, compat="reference").max() == 0


def test_a_slice_is_turned_to_how_it_is_looked_at(tmp_path):
    stored = np.zeros((6, 4, 1), np.uint8)  # to the right, to the front, to the head
    stored[5, 3, 0] = 9  # right, front
    picture, geometry = read_picture(write_nifti(tmp_path / "s.nii", stored, Geometry(np.eye(4))))
    assert picture.shape == (4, 6) and picture[0, 0] == 9 and geometry.orientation == "SPL"
    with pytest.raises(ReadError, match="use demo_parse3D.py"):
        read_picture(write_nifti(tmp_path / "v.nii", np.zeros((6, 4, 2), np.uint8), Geometry(np.eye(4))))

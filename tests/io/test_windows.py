"""Grey values to 8 bit: the windows, the percentiles, and the order in which one is chosen."""

import numpy as np
import pytest

from unimed.geometry import Geometry
from unimed.io.errors import WindowError
from unimed.io.windows import (
    CT_WINDOWS_HU,
    choose_window,
    color_to_uint8,
    known_site,
    modality_of,
    percentile_range,
    unknown_modality,
    window_to_uint8,
)

HOUNSFIELD = np.array([[[-1000, 0, 900]]], np.int16)


def volume(header=None, form="nifti"):
    return Geometry(np.eye(4), source_format=form, header=header or {})


@pytest.mark.parametrize("site", CT_WINDOWS_HU)
def test_window_ends_map_to_black_and_white(site):
    level, width = CT_WINDOWS_HU[site]
    values = np.array([-3000, level - width / 2, level, level + width / 2, 3000])
    black, low, middle, high, white = choose_window(values, site=site)(values)
    assert (black, low, high, white) == (0, 0, 255, 255) and middle in (127, 128)


def test_percentiles_ignore_empty_border_and_outliers():
    inside = np.linspace(100, 200, 1001)
    inside[-1] = 1e6
    framed = np.concatenate((np.zeros(5000), inside))
    mapped = choose_window(framed)(framed)[5000:]
    assert abs(int(mapped[500]) - 127) <= 2 and mapped[-1] == 255
    assert choose_window(framed, ignore_zero=False)(framed)[5000] > 100


@pytest.mark.parametrize("array", [np.zeros((3, 3)), np.full((3, 3), 7), np.full((3, 3), 7.5)])
def test_a_constant_image_is_black(array):
    assert not choose_window(array)(array).any()


def test_a_16_bit_image_is_not_clipped_to_white():
    array = np.linspace(1000, 60000, 100).astype(np.uint16)
    assert 20 < np.unique(choose_window(array)(array)).size


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint8])
@pytest.mark.parametrize("ignore_zero", [True, False])
def test_counted_percentiles_equal_numpy(dtype, ignore_zero):
    low = 0 if np.dtype(dtype).kind == "u" else -300
    array = np.random.default_rng(0).integers(low, 250, (5, 30, 31)).astype(dtype)
    values = array[array != 0] if ignore_zero else array
    found = percentile_range(array, 3, 91.7, ignore_zero)
    assert found == pytest.approx(tuple(np.percentile(values, (3, 91.7))))


@pytest.mark.parametrize("part", [0, 12.5, 33, 50, 91.7, 99])
def test_percentiles_lie_between_two_values(part):
    array = np.array([[[7, 40, 90], [130, 1000, 2200]]], np.int16)
    assert percentile_range(array, part, 100)[0] == pytest.approx(np.percentile(array, part))


def test_the_order_of_windows():
    """Argument, file, site and modality, percentiles; each is used where those before it say nothing."""
    of_file = {"window": (50, 10), "modality": "CT"}
    every = dict(window=(0, 100), percentiles=(10, 90), site="lung", modality="CT")
    assert str(choose_window(HOUNSFIELD, volume(of_file), **every)) == "window [-50, 50]"
    every.pop("window")
    assert choose_window(HOUNSFIELD, volume(of_file), **every).rule == "percentiles 10 and 90"
    every.pop("percentiles")
    assert str(choose_window(HOUNSFIELD, volume(of_file), **every)) == "window of the file 50/10 [45, 55]"
    assert str(choose_window(HOUNSFIELD, volume({"modality": "CT"}), **every)) == "CT window lung [-1350, 150]"
    unknown = choose_window(HOUNSFIELD, volume({"modality": "CT"}))
    assert str(unknown) == "CT window soft tissue [-160, 240]" and "site is not known" in unknown.remark
    assert choose_window(HOUNSFIELD, volume({"modality": "MR"}), site="brain").rule.startswith("percentiles")
    said = choose_window(HOUNSFIELD, volume())
    assert said.rule.startswith("percentiles") and "look like CT" in said.remark and said.remark in said.steps
    assert choose_window(HOUNSFIELD, window="brain").high == 80


def test_8_bit_values_stay():
    eight = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert choose_window(eight, volume({"modality": "CT"}))(eight) is eight
    inverted = choose_window(eight, volume({"photometric": "MONOCHROME1"}))
    assert (inverted(eight) == 255 - eight).all() and inverted.steps


def test_inverted_values_are_inverted_after_the_window():
    header = {"photometric": "MONOCHROME1", "modality": "CT"}
    plain, turned = (choose_window(HOUNSFIELD, volume(h)) for h in ({"modality": "CT"}, header))
    assert (turned(HOUNSFIELD) == 255 - plain(HOUNSFIELD)).all() and str(turned).endswith("inverted")


def test_a_model_brings_its_own_windows():
    assert choose_window(HOUNSFIELD, modality="CT", site="lung", windows={"lung": (0, 2000)}).low == -1000
    with pytest.raises(WindowError, match="known are lung"):
        choose_window(HOUNSFIELD, modality="CT", site="brain", windows={"lung": (0, 2000)})


def test_values_of_a_picture_are_hounsfield_units_only_where_a_site_is_given():
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    picture = Geometry.pixels(source_format="image")
    assert choose_window(deep, picture, modality="CT").rule.startswith("percentiles")
    assert choose_window(deep, picture, modality="CT", site="bone").rule == "CT window bone"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(site="elbow", modality="CT"), "brain"),
        (dict(window=(0, 0)), "width"),
        (dict(window="elbow"), "brain"),
        (dict(percentiles=(60, 40)), "percentiles"),
    ],
)
def test_bad_arguments_are_named(options, word):
    with pytest.raises(WindowError, match=word):
        choose_window(HOUNSFIELD, **options)
    with pytest.raises(WindowError, match="width"):
        window_to_uint8(np.zeros(2), 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers(bad):
    with pytest.raises(WindowError, match="NaN or Inf"):
        choose_window(np.array([[1.0, bad]]))
    with pytest.raises(WindowError, match="numbers"):
        choose_window(np.array(["a"]))


def test_sites_of_records():
    assert known_site("Lung", "CT") == "lung" and known_site("knee", "CT") == "" == known_site("brain", "MRI")


def test_modalities_by_name():
    names = {"CT_AMOS_1": "CT", "MR_BraTS": "MR", "MRI-T1-Gd": "MR", "US_Cardiac": "US", "Microscopy_x": "Microscopy"}
    names |= {"PET_a": "PET", "X-Ray": "X-ray", "case7": "", "usual": "", "ultrasound": "US", "CTA": ""}
    assert {name: modality_of(name) for name in names} == names


def test_a_modality_that_nothing_knows_is_told():
    assert "'banana' is not known" in unknown_modality("banana") and "CT, MR" in unknown_modality("CTA")
    known = (
        "",
        "MRI",
        "CT",
        "fundus photography",
        "Pathology",
        "histology",
        "endoscope",
        "OCT",
        "bone scan",
        "drawing",
    )
    assert not any(map(unknown_modality, known))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_colour_keeps_its_hue(bits):
    eight = np.random.default_rng(0).integers(0, 256, (9, 7, 3))
    eight[0, 0] = 255
    deep = np.rint(eight * ((2**bits - 1) / 255)).astype(np.uint16)
    made, said = color_to_uint8(deep)
    assert np.abs(made.astype(int) - eight).max() <= 1 and bool(said) == (bits > 8)
    assert (color_to_uint8(eight / 255)[0] == eight).all() and (color_to_uint8(eight.astype(float))[0] == eight).all()

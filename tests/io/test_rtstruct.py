"""Contours: valid for dciodvfy, and every pixel comes back whatever the size of the object."""

import numpy as np
import pytest
from clinical import blobs, ct_series, dicom_errors, found_in, identifying, source_cases, write_source
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed.geometry import reorient
from unimed.io.dicom_seg import DicomSegError
from unimed.io.limits import ReadError
from unimed.io.result import Prediction
from unimed.io.rtstruct import contours_of, filled, read_rtstruct
from unimed.structures import Region

pytest.importorskip("highdicom")
CASES = [case for case in source_cases() if case[2] in ("ct", "mr", "enhanced", "one")][::3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_contours_enclose_exactly_the_pixels_inside(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(filled(contours_of(mask), mask.shape), mask)


@pytest.mark.parametrize(("name", "grid", "kind"), CASES, ids=[case[0] for case in CASES])
def test_masks_of_any_series_come_back(tmp_path, name, grid, kind):
    array, geometry = write_source(tmp_path / "s", grid, kind)
    masks = blobs(array.shape)
    names = ("left kidney", "Läsion 肝臓", "ring")
    masks[2][:] = False
    masks[2][1:6, 1:6, 0], masks[2][3, 3, 0] = True, False
    prediction = Prediction("", (*map(Region, names, masks), Region("spleen")), geometry)
    (path,) = prediction.save(tmp_path, "case", ("rtstruct",))
    assert dicom_errors(path) == []
    back = read_rtstruct(path, geometry, array.shape)
    assert [region.phrase for region in back] == list(names)
    for mask, region in zip(masks, back, strict=True):
        assert np.array_equal(region.mask, mask)


def test_turned_results_privacy_and_faults(tmp_path):
    import pydicom

    array, geometry = ct_series(tmp_path / "s")
    (mask,) = blobs(array.shape, 1)
    turned, turned_geometry = reorient(mask, geometry, "SRA")
    prediction = Prediction("", (Region("liver", np.ascontiguousarray(turned)),), turned_geometry)
    (path,) = prediction.save(tmp_path, "case", ("rtstruct",), deidentified=True)
    assert np.array_equal(read_rtstruct(path, geometry, array.shape)[0].mask, mask)
    header = pydicom.dcmread(geometry.header["files"][0])
    assert found_in(path.read_bytes(), identifying(header)) == [] and dicom_errors(path) == []
    with pytest.raises(DicomSegError, match="nothing is outlined"):
        Prediction("", (Region("liver"),), geometry).save(tmp_path, "x", ("rtstruct",))
    with pytest.raises(ReadError, match="no structure set"):
        read_rtstruct(geometry.header["files"][0], geometry, array.shape)

"""Parametric maps and secondary captures."""

import numpy as np
import pydicom
import pytest
import small_volumes
from clinical import blobs, ct_series, dicom_errors, found_in, identifying, source_cases, write_source

from unimed.geometry import reorient
from unimed.io.dicom_seg import DicomSegError
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.structures import Region

highdicom = pytest.importorskip("highdicom")
CASES = source_cases()[::9]


@pytest.mark.parametrize(("name", "grid", "kind"), CASES, ids=[case[0] for case in CASES])
def test_maps_and_captures_of_any_series_are_valid(tmp_path, name, grid, kind):
    array, geometry = write_source(tmp_path / "s", grid, kind)
    values = np.random.default_rng(0).random(array.shape).astype(np.float32)
    prediction = Prediction("", (Region("left kidney", values > 0.5), Region("spleen")), geometry)
    (path,) = prediction.save(tmp_path, "m", ("parametric-map",), probabilities=[values, None])
    assert dicom_errors(path) == []
    assert np.array_equal(values_of(path, geometry, array.shape[2]), values)
    pictures = prediction.save(tmp_path, "c", ("secondary-capture",))
    assert all(dicom_errors(path) == [] for path in pictures)
    picture = pydicom.dcmread(pictures[0]).pixel_array
    assert (picture.max(-1) != picture.min(-1)).any(), "the outline is in color"


def values_of(path, geometry, count):
    """Values of a map in the grid of its series: its frames, by their places, may stand in any order."""
    made = pydicom.dcmread(path)
    frames = made.pixel_array
    frames = frames[None] if frames.ndim == 2 else frames
    slices = {}
    for group, frame in zip(made.PerFrameFunctionalGroupsSequence, frames, strict=True):
        lps = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        index = np.linalg.solve(geometry.affine, (-lps[0], -lps[1], lps[2], 1))[:3]
        assert np.abs(index - index.round()).max() < 0.01 and not index.round()[:2].any()
        slices[int(index[2].round())] = frame.T
    return np.stack([slices[k] for k in range(count)], -1)


def test_turned_maps_are_turned_back_and_series_are_shared(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    values = np.random.default_rng(0).random(array.shape).astype(np.float32)
    turned, turned_geometry = reorient(values, geometry, "ASL")
    regions = (
        Region("liver", np.ascontiguousarray(turned) > 0.5),
        Region("spleen", np.ascontiguousarray(turned) > 0.9),
    )
    prediction = Prediction("", regions, turned_geometry)
    maps = [turned] * 2
    one, two = prediction.save(tmp_path, "m", ("parametric-map",), probabilities=maps, quantity="uncertainty")
    assert np.array_equal(values_of(one, geometry, array.shape[2]), values)
    first, second = pydicom.dcmread(one), pydicom.dcmread(two)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID and first.SOPInstanceUID != second.SOPInstanceUID
    for wrong in ({"probabilities": [values * 2, None]}, {}, {"probabilities": maps, "quantity": "x"}):
        with pytest.raises(DicomSegError):
            prediction.save(tmp_path, "x", ("parametric-map",), **wrong)


def test_deidentified_pictures_and_maps_hold_nothing_of_the_patient(tmp_path):
    array, geometry = ct_series(tmp_path / "s")
    header = pydicom.dcmread(geometry.header["files"][0])
    (mask,) = blobs(array.shape, 1)
    prediction = Prediction("", (Region("liver", mask),), geometry)
    options = {"probabilities": [mask.astype(np.float32)], "deidentified": True}
    for path in prediction.save(tmp_path / "o", "m", ("parametric-map", "secondary-capture"), **options):
        assert found_in(path.read_bytes(), identifying(header)) == [] and dicom_errors(path) == []


def test_an_x_ray_gets_a_picture_of_its_boxes(tmp_path):
    made = small_volumes.dataset("1.2.840.10008.5.1.4.1.1.1.1", "DX")
    small_volumes.set_pixels(made, np.arange(20 * 30, dtype=np.int16).reshape(20, 30))
    small_volumes.save(tmp_path, [made], ["x.dcm"])
    _, geometry = read(tmp_path / "x.dcm")
    prediction = Prediction("", (Region("heart", box_xyxy_px=(3, 4, 20, 15)),), geometry)
    (path,) = prediction.save(tmp_path, "x", ("secondary-capture",))
    assert dicom_errors(path) == []
    assert (np.ptp(pydicom.dcmread(path).pixel_array, axis=-1) > 0).sum() > 40

import subprocess
import sys

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from unimed.files import write_atomic
from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.io.read import ReadError, read, read_bytes
from unimed.io.write import write_nifti, write_npz

# Orthogonal columns of the lengths 0.81, 0.91 and 2.5 mm: a turned scan, not a sheared one.
TURN = np.linalg.qr(np.array([[-0.8, 0.1, 0.3], [0.12, 0.9, -0.2], [0.05, -0.1, 2.5]]))[0]
OBLIQUE = Geometry(np.vstack((np.column_stack((TURN * (0.81, 0.91, 2.5), (10, -20, 30))), (0, 0, 0, 1))), "test")


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_nifti_round_trip_in_every_orientation(tmp_path, volume, orientation):
    array, geometry = reorient(volume, OBLIQUE, orientation)
    back, back_geometry = read(write_nifti(tmp_path / "v.nii.gz", array, geometry))
    assert back.dtype == np.int16 and np.array_equal(back, array)
    assert back_geometry.orientation == orientation
    corner = np.array([3, 4, 5, 1])
    error_mm = (back_geometry.affine - geometry.affine) @ corner
    assert np.abs(np.linalg.solve(geometry.affine[:3, :3], error_mm[:3])).max() < 1e-4


def test_nrrd_and_nifti_of_one_volume_agree(tmp_path, volume):
    image = SimpleITK.GetImageFromArray(volume.transpose(2, 1, 0))
    image.SetSpacing((0.7, 0.8, 3.0))
    image.SetOrigin((1, -2, 3))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(tmp_path / "v.nrrd"))
    SimpleITK.WriteImage(image, str(tmp_path / "v.nii.gz"))
    nrrd, nrrd_geometry = read(tmp_path / "v.nrrd")
    nifti, nifti_geometry = read(tmp_path / "v.nii.gz")
    assert np.array_equal(nrrd, volume) and np.array_equal(nifti, volume)
    assert nrrd_geometry.orientation == nifti_geometry.orientation == "LAS"
    assert np.allclose(nrrd_geometry.affine, nifti_geometry.affine, atol=1e-4)


def write_series(folder, order=range(5), positions=None):
    """Slices of the CT image that pydicom ships, stacked 2.5 mm apart along the superior direction."""
    template = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    series_uid = generate_uid()
    for k in order:
        slice_ = template.copy()
        slice_.SeriesInstanceUID = series_uid
        slice_.SOPInstanceUID = generate_uid()
        slice_.ImagePositionPatient = [-10, -20, positions[k] if positions else 100 + 2.5 * k]
        pixels = template.pixel_array.copy()
        pixels[0, 0] = k
        slice_.PixelData = pixels.tobytes()
        slice_.save_as(folder / f"{hash((k, 7)) % 1000}_{k}.dcm")


def test_dicom_series_is_sorted_by_place_and_agrees_with_simpleitk(tmp_path):
    write_series(tmp_path, order=(3, 0, 4, 1, 2))
    array, geometry = read(tmp_path)
    assert array.shape == (128, 128, 5) and geometry.orientation == "LPS"
    intercept = float(pydicom.dcmread(get_testdata_file("CT_small.dcm")).RescaleIntercept)
    assert (array[0, 0] - intercept).tolist() == [0, 1, 2, 3, 4]
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    oracle = SimpleITK.ReadImage(names)
    assert np.array_equal(SimpleITK.GetArrayFromImage(oracle).transpose(2, 1, 0), array)
    x, y, z = oracle.TransformIndexToPhysicalPoint((7, 11, 4))
    assert np.allclose(geometry.affine @ (7, 11, 4, 1), (-x, -y, z, 1), atol=1e-3)


def test_dicom_series_faults_are_named(tmp_path):
    with pytest.raises(ReadError, match="no DICOM image"):
        read(tmp_path)
    write_series(tmp_path, positions=[0, 2.5, 5, 7.5, 7.5])
    with pytest.raises(ReadError, match="same place"):
        read(tmp_path)
    gap = tmp_path / "gap"
    gap.mkdir()
    write_series(gap, positions=[0, 2.5, 5, 7.5, 12.5])
    with pytest.raises(ReadError, match="2.500 mm apart but once 5.000 mm: a slice is missing"):
        read(gap)
    uneven = tmp_path / "uneven"
    uneven.mkdir()
    write_series(uneven, positions=[0, 2.5, 5, 7.5, 10.9])
    with pytest.raises(ReadError, match="once 3.400 mm.*not evenly spaced"):
        read(uneven)


@pytest.mark.parametrize(
    ("mode", "expected_shape"),
    [("RGBA", (3, 5, 3)), ("P", (3, 5, 3)), ("CMYK", (3, 5, 3)), ("L", (3, 5)), ("1", (3, 5))],
)
def test_picture_modes(tmp_path, mode, expected_shape):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(path)
    array, geometry = read(path)
    assert array.shape == expected_shape and array.dtype == np.uint8 and array.min() == 255
    assert not geometry.is_physical


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_pictures_keep_their_values(tmp_path, suffix):
    values = np.array([[0, 1, 255, 256, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    array, _ = read(tmp_path / f"x.{suffix}")
    assert array.dtype == np.uint16 and np.array_equal(array, values)


@pytest.mark.parametrize("size", [(1, 1), (20000, 10)])
def test_extreme_sizes(tmp_path, size):
    Image.new("L", size).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png")[0].shape == size[::-1]


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_truncated_files_are_named(tmp_path, volume):
    noise = np.random.default_rng(1).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    write_nifti(tmp_path / "b.nii.gz", volume, OBLIQUE)
    write_nifti(tmp_path / "c.nii", volume, OBLIQUE)
    write_npz(tmp_path / "d.npz", {"imgs": volume})
    (tmp_path / "e.dcm").write_bytes(open(get_testdata_file("CT_small.dcm"), "rb").read())
    for name in ("a.png", "b.nii.gz", "c.nii", "d.npz", "e.dcm"):
        with pytest.raises(ReadError, match=name):
            read(truncated(tmp_path / name))


def test_other_bad_input_is_named(tmp_path, volume):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        read(tmp_path / "gone.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ReadError, match="empty"):
        read(tmp_path / "empty.png")
    (tmp_path / "x.doc").write_text("x")
    with pytest.raises(ReadError, match="unknown suffix"):
        read(tmp_path / "x.doc")
    nan = volume.astype(np.float32)
    nan[0, 0, 0] = np.nan
    with pytest.raises(ReadError, match="1 voxels are NaN"):
        read(write_nifti(tmp_path / "nan.nii", nan, OBLIQUE))
    singular = nibabel.Nifti1Image(volume, np.eye(4))
    singular.set_sform(np.diag((1, 0, 1, 1)), code=1)
    nibabel.save(singular, tmp_path / "singular.nii")
    with pytest.raises(ReadError, match="singular"):
        read(tmp_path / "singular.nii")


def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((30000, 30000, 30000))
    (tmp_path / "huge.nii").write_bytes(header.binaryblock + b"\0" * 1000)
    with pytest.raises(ReadError, match="limit"):
        read(tmp_path / "huge.nii")


def test_npz_needs_no_pickle(tmp_path, volume):
    np.savez(tmp_path / "objects.npz", imgs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ReadError, match="objects.npz"):
        read(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match="Python objects"):
        write_npz(tmp_path / "y.npz", {"x": np.array([object()])})
    array, geometry = read(write_npz(tmp_path / "v.npz", {"imgs": volume, "spacing": np.array([0.5, 0.6, 3.0])}))
    assert np.array_equal(array, volume) and geometry.spacing == (3.0, 0.6, 0.5) and geometry.orientation == "SPL"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")

    def fails(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, fails)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_importing_unimed_loads_no_heavy_library():
    code = "import sys, unimed; print([m for m in ('torch', 'pydicom', 'nibabel', 'SimpleITK') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_what_a_library_says_is_told_on_one_line(tmp_path):
    short = nibabel.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4))
    nibabel.save(short, tmp_path / "short.nii")
    (tmp_path / "short.nii").write_bytes((tmp_path / "short.nii").read_bytes()[:600])
    for read_it in (lambda: read(tmp_path / "short.nii"), lambda: read_bytes(b"no picture", "a.tar: sample 3")):
        with pytest.raises(ReadError) as told:
            read_it()
        assert "\n" not in str(told.value) and " at 0x" not in str(told.value)

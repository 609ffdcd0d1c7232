"""Single DICOM files: enhanced objects, colors, cines, dose grids, and what is wrong with them."""

import copy
import io

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from small_volumes import dataset, enhanced, grid, set_pixels

from unimed.geometry import align
from unimed.io.limits import Limits
from unimed.io.read import ReadError, read, read_bytes

GEOMETRY = grid((0.7, 0.7, 2.5), origin=(-10, 5, 60))
VALUES = np.random.default_rng(0).integers(0, 2000, (6, 5, 4)).astype(np.int16)


def saved(tmp_path, made, name="a.dcm"):
    made.save_as(tmp_path / name, enforce_file_format=True)
    return tmp_path / name


def test_frames_are_sorted_placed_and_rescaled_each_by_its_own(tmp_path):
    rescale = [(1, -1024), (2, -1024), (1, 0), (0.5, 3)]
    order = (3, 1, 0, 2)
    array, geometry = read(saved(tmp_path, enhanced(VALUES, GEOMETRY, order, rescale=rescale)))
    back = align(array, geometry, GEOMETRY, VALUES.shape)[0]
    for frame, k in enumerate(order):
        slope, intercept = rescale[frame]
        assert np.allclose(back[:, :, k], VALUES[:, :, k] * slope + intercept)
    assert geometry.is_physical and np.allclose(geometry.spacing, (0.7, 0.7, 2.5))


def test_shared_rescale_and_window_hold_for_all_frames(tmp_path):
    made = enhanced(VALUES, GEOMETRY)
    value, window = Dataset(), Dataset()
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1024, "HU"
    window.WindowCenter, window.WindowWidth = [40, 300], [400, 1500]
    made.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [value]
    made.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence = [window]
    array, geometry = read(saved(tmp_path, made))
    assert array.min() == VALUES.min() - 1024 and geometry.header["window"] == (40, 400)


def test_one_frame_of_an_enhanced_object_is_a_volume_of_one_slice(tmp_path):
    array, geometry = read(saved(tmp_path, enhanced(VALUES[:, :, :1], GEOMETRY)))
    assert array.shape == (6, 5, 1) and np.allclose(geometry.spacing, (0.7, 0.7, 2.5))


@pytest.mark.parametrize(
    ("sequence", "name", "found"),
    [
        ("MREchoSequence", "EffectiveEchoTime", [5.0, 90.0]),
        ("MRDiffusionSequence", "DiffusionBValue", [0.0, 1000.0]),
        ("FrameContentSequence", "TemporalPositionIndex", [1, 2]),
        ("FrameContentSequence", "StackID", ["1", "2"]),
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", [0.0, 40.0]),
    ],
)
def test_echoes_stacks_and_times_are_chosen(tmp_path, sequence, name, found):
    both = np.concatenate((VALUES, VALUES + 1), axis=2)
    groups = [{sequence: {name: found[k // 4]}} for k in range(8)]
    made = enhanced(both, GEOMETRY, modality="MR", groups=groups)
    for k, frame in enumerate(made.PerFrameFunctionalGroupsSequence):
        source = made.PerFrameFunctionalGroupsSequence[k % 4].PlanePositionSequence[0]
        frame.PlanePositionSequence = [copy.deepcopy(source)]
    path = saved(tmp_path, made)
    with pytest.raises(ReadError, match=f"2 phases.*0: {name} .*1: {name}"):
        read(path)
    for phase in (0, 1):
        array, geometry = read(path, phase=phase)
        assert np.array_equal(align(array, geometry, GEOMETRY, VALUES.shape)[0], VALUES + phase)


def test_frames_that_are_no_stack_are_refused_by_frame(tmp_path):
    made = enhanced(VALUES, GEOMETRY)
    made.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient = ["-10", "5", "75"]
    with pytest.raises(ReadError, match="frame 4"):
        read(saved(tmp_path, made))
    made = enhanced(VALUES, GEOMETRY)
    del made.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    with pytest.raises(ReadError, match="frame 3 of 4 has no place"):
        read(saved(tmp_path, made))
    made = enhanced(VALUES, GEOMETRY)
    made.PerFrameFunctionalGroupsSequence = made.PerFrameFunctionalGroupsSequence[:3]
    with pytest.raises(ReadError, match="frame 4 of 4 has no place"):
        read(saved(tmp_path, made))
    made = enhanced(VALUES, GEOMETRY)
    del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    with pytest.raises(ReadError, match="no PixelSpacing"):
        read(saved(tmp_path, made))


@pytest.mark.parametrize(
    "name",
    ["examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm", "SC_rgb_jpeg.dcm",
     "SC_rgb_rle_2frame.dcm", "SC_ybr_full_422_uncompressed.dcm"],
)  # fmt: skip
def test_every_color_space_is_rgb(name):
    array, geometry = read(get_testdata_file(name))
    assert array.shape[-1] == 3 and array.ndim == (4 if geometry.header.get("cine") else 3) and array.dtype == np.uint8
    assert geometry.header["photometric"] == "RGB" and not geometry.is_physical


def test_inverted_grey_values_stay_as_stored(tmp_path):
    made = dataset("1.2.840.10008.5.1.4.1.1.1", "CR")
    made.PhotometricInterpretation = "MONOCHROME1"
    set_pixels(made, VALUES[:, :, 0])
    array, geometry = read(saved(tmp_path, made))
    assert np.array_equal(array, VALUES[:, :, 0]) and geometry.header["photometric"] == "MONOCHROME1"
    assert geometry.header["modality"] == "CR"


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"]
)
def test_transfer_syntaxes_give_the_same_values(name):
    plain, grid_ = read(get_testdata_file("MR_small.dcm"))
    array, geometry = read(get_testdata_file(name))
    assert np.array_equal(array, plain) and np.allclose(geometry.affine, grid_.affine)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jpeg_ls_lossless.dcm"]
)
def test_a_compressed_frame_that_is_cut_is_an_error(tmp_path, name):
    from pydicom.encaps import encapsulate, generate_frames

    made = pydicom.dcmread(get_testdata_file(name))
    frames = [f[: len(f) * 2 // 3] for f in generate_frames(made.PixelData, number_of_frames=1)]
    made.PixelData = encapsulate(frames)
    with pytest.raises(ReadError, match="cut|damaged"):
        read(saved(tmp_path, made))


def test_a_dose_grid_lies_where_its_offsets_say():
    array, geometry = read(get_testdata_file("rtdose.dcm"))
    source = pydicom.dcmread(get_testdata_file("rtdose.dcm"))
    assert array.shape == (source.Columns, source.Rows, source.NumberOfFrames) and geometry.is_physical
    assert array.max() == pytest.approx(source.pixel_array.max() * float(source.DoseGridScaling))
    offsets = [float(v) for v in source.GridFrameOffsetVector]
    assert geometry.spacing[2] == pytest.approx(abs(offsets[1] - offsets[0]))


def test_deflated_data_are_read_within_the_limit_and_to_their_end(tmp_path):
    made = dataset()
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    set_pixels(made, np.zeros((512, 512), np.int16))
    path = saved(tmp_path, made)
    assert path.stat().st_size < 5000 and read(path)[0].shape == (512, 512)
    with pytest.raises(ReadError, match="more than 100000 bytes once decompressed"):
        read(path, limits=Limits(decoded_bytes=100_000))
    assert read_bytes(path.read_bytes(), "a.tar: 1")[0].shape == (512, 512)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ReadError, match="cut or damaged"):
        read(path)
    with pytest.raises(ReadError, match="a.tar: 1: .*cut or damaged"):
        read_bytes(path.read_bytes(), "a.tar: 1")


def test_pixels_are_measured_before_they_are_decoded(tmp_path):
    made = dataset()
    set_pixels(made, VALUES[:, :, 0])
    made.Rows = 60000
    made.Columns = 60000
    with pytest.raises(ReadError, match="more than the limit"):
        read(saved(tmp_path, made))
    made.Rows, made.Columns = 7, 5
    with pytest.raises(ReadError, match="short: 60 bytes of pixels, its header promises 70"):
        read(saved(tmp_path, made))
    made.Rows, made.Columns = 3, 5
    with pytest.raises(ReadError, match="30 bytes more than"):
        read(saved(tmp_path, made))


def test_objects_without_an_image_are_named(tmp_path):
    for name, kind in (("rtplan.dcm", "RTPLAN"), ("test-SR.dcm", "SR"), ("rtstruct.dcm", "RTSTRUCT")):
        with pytest.raises(ReadError, match=f"without an image .kind {kind}"):
            read(get_testdata_file(name))


def test_a_file_named_by_its_uid_is_known_by_its_mark(tmp_path):
    path = saved(tmp_path, enhanced(VALUES, GEOMETRY), "1.2.840.113619.2.55")
    assert read(path)[0].shape == VALUES.shape


def test_bytes_in_memory_are_read_like_files(tmp_path):
    path = saved(tmp_path, enhanced(VALUES, GEOMETRY))
    array, geometry = read_bytes(path.read_bytes(), "a.tar: 3")
    assert np.array_equal(array, read(path)[0]) and "files" not in geometry.header
    stream = io.BytesIO(b"<html>gone</html>" + b" " * 200)
    with pytest.raises(ReadError, match="a.tar: 3: an HTML page"):
        read_bytes(stream.getvalue(), "a.tar: 3")


def test_files_without_the_mark_are_read_where_they_are_called_so(tmp_path):
    plain, _ = read(get_testdata_file("CT_small.dcm"))
    source = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    del source.file_meta
    source.preamble = None
    source.save_as(tmp_path / "old.dcm", implicit_vr=True, little_endian=True)
    assert (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read(tmp_path / "old.dcm")[0], plain) and np.array_equal(read(tmp_path)[0], plain)


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_a_frame_that_claims_another_size_than_its_header_is_not_decoded(tmp_path, name, monkeypatch):
    made = pydicom.dcmread(get_testdata_file(name))
    assert read(get_testdata_file(name))[0].size == made.Rows * made.Columns * made.SamplesPerPixel
    made.Rows = made.Rows // 2
    monkeypatch.setattr(pydicom.dataset.Dataset, "pixel_array", property(lambda self: 1 / 0))
    with pytest.raises(ReadError, match="pixels, its header says"):
        read(saved(tmp_path, made))

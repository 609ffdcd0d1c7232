"""Folders: which series is meant, and what keeps its slices from being one volume."""

import copy
import re
import warnings

import numpy as np
import pytest
from small_volumes import FRAME_OF_REFERENCE, dataset, ds, enhanced, grid, save, set_pixels, sheared_grids, slices

from unimed.geometry import align, grid_distance
from unimed.inference.volume_files import find_volumes, read_volume
from unimed.io.read import ReadError, read

UPRIGHT = grid((0.8, 0.8, 2.5), origin=(-50, -40, 100))
DEEP = 9


def ramp(shape=(6, 5, DEEP), geometry=UPRIGHT):
    """Values that say where a voxel lies along z, in hundredths of a slice: 100 times its number."""
    return np.broadcast_to(100 * np.arange(shape[2]), shape).astype(np.int16)


def shifted(made, k, mm, axis=2):
    place = [float(v) for v in made[k].ImagePositionPatient]
    place[axis] += mm
    made[k].ImagePositionPatient = [ds(v) for v in place]


def missing(k):
    return lambda made: made.pop(k)


def move(k, mm, axis=2):
    return lambda made: shifted(made, k, mm, axis)


def copy_of(k):
    def change(made):
        made.append(copy.deepcopy(made[k]))
        made[-1].SOPInstanceUID = "1.2.3"

    return change


def other_at(k):
    def change(made):
        copy_of(k)(made)
        set_pixels(made[-1], made[k].pixel_array + 7)

    return change


def tilted(k, degrees):
    def change(made):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        made[k].ImageOrientationPatient = [ds(v) for v in (-1, 0, 0, 0, -c, -s)]

    return change


def attribute(k, **values):
    def change(made):
        for name, value in values.items():
            setattr(made[k], name, value)

    return change


def size(k):
    return lambda made: set_pixels(made[k], np.zeros((7, 6), np.int16))


def without(k, name):
    return lambda made: delattr(made[k], name)


#: What is done to a sound series, what the error says, and whether it can be resampled on request.
IRREGULAR = {
    "missing in the middle": (missing(4), "once 5.000 mm: a slice is missing", True),
    "missing second": (missing(1), "a slice is missing", True),
    "missing last but one": (missing(DEEP - 2), "a slice is missing", True),
    "two missing": (lambda made: (made.pop(6), made.pop(2)), "a slice is missing", True),
    "first far away": (move(0, -20), "a slice is missing", True),
    "last far away": (move(-1, 20), "a slice is missing", True),
    "uneven in the middle": (move(4, 0.8), "not evenly spaced", True),
    "uneven first": (move(0, 0.6), "not evenly spaced", True),
    "uneven last": (move(-1, -0.6), "not evenly spaced", True),
    "copy of the first": (copy_of(0), "same place", True),
    "copy of the last": (copy_of(-1), "same place", True),
    "another at one place": (other_at(3), "same place", False),
    "tilted first": (tilted(0, 5), "tilted by 5.0 degrees", False),
    "tilted a little": (tilted(4, 5.5), "tilted by 5.50 degrees|tilted by 5.5 degrees", False),
    "tilted last": (tilted(-1, 90), "tilted by 90.0 degrees", False),
    "turned in plane": (attribute(2, ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), "turned within its plane", True),
    "other pixel spacing": (attribute(-1, PixelSpacing=[0.9, 0.9]), "pixel spacing", True),
    "other size": (size(5), r"\(7, 6\) pixels", True),
    "beside the line": (move(6, 4, axis=0), "beside the line", True),
    "first beside the line": (move(0, 3, axis=1), "beside the line", True),
    "inverted grey values": (attribute(4, PhotometricInterpretation="MONOCHROME1"), "inverted", False),
    "no pixel spacing": (without(-1, "PixelSpacing"), "no PixelSpacing", False),
    "another frame of reference": (attribute(-1, FrameOfReferenceUID="1.2.3"), "another frame of reference", False),
    "not rescaled": (without(2, "RescaleSlope"), "no RescaleSlope, which 8 of 9 slices have", False),
    "no place": (without(0, "ImagePositionPatient"), "its place is unknown", False),
    "no unit vectors": (attribute(3, ImageOrientationPatient=[2, 0, 0, 0, 2, 0]), "unit vectors", False),
    "negative spacing": (attribute(3, PixelSpacing=[-0.8, 0.8]), "positive", False),
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_an_irregular_series_is_refused_with_file_and_numbers(tmp_path, name):
    change, message, can_be_resampled = IRREGULAR[name]
    made = slices(ramp(), UPRIGHT, RescaleSlope="1", RescaleIntercept="-1024")
    change(made)
    save(tmp_path, made)
    with pytest.raises(ReadError, match=message) as told:
        read(tmp_path)
    assert re.search(r"\.dcm", str(told.value)) and "\n" not in str(told.value)
    if can_be_resampled:
        array, geometry = read(tmp_path, irregular="resample")
        assert geometry.steps and "resampled" in geometry.steps[-1] and "files" not in geometry.header
        assert array.ndim == 3 and geometry.spacing[2] > 0
    else:
        with pytest.raises(ReadError):
            read(tmp_path, irregular="resample")


def content_at(places_mm):
    """A smooth quantity of the patient, linear in place."""
    return places_mm @ np.array([3.0, -2.0, 20.0])


@pytest.mark.parametrize("name", ["missing in the middle", "uneven in the middle", "other pixel spacing", "tilt"])
def test_resampled_slices_show_what_lies_there(tmp_path, name):
    geometry = sheared_grids(1, seed=4)[0] if name == "tilt" else UPRIGHT
    shape = (12, 10, 8)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    made = slices(np.zeros(shape), geometry)
    if name == "missing in the middle":
        made.pop(3)
    elif name == "uneven in the middle":
        shifted(made, 3, 0.9)
    elif name == "other pixel spacing":
        made[-1].PixelSpacing = [0.85, 0.85]
    for one in made:  # pixels follow the headers, as in a scan
        row, column = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
        spacing = np.array(one.PixelSpacing, float)
        i, j = index[:, :, 0, 0].T, index[:, :, 0, 1].T
        places = np.array(one.ImagePositionPatient, float) + i[..., None] * row * spacing[1]
        places = places + j[..., None] * column * spacing[0]
        set_pixels(one, np.rint(content_at(places)).astype(np.int16))
    save(tmp_path, made)
    array, found = read(tmp_path, irregular="resample")
    assert not found.is_sheared and "resampled" in found.steps[-1]
    places = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1) @ found.affine[:3, :3].T
    places = (places + found.affine[:3, 3]) * (-1, -1, 1)  # LPS
    error_mm = np.abs(array - content_at(places)) / np.linalg.norm([3, -2, 20])
    inside = error_mm[3:-3, 3:-3, 1:-1] if name != "tilt" else np.sort(error_mm.ravel())[: error_mm.size // 4]
    assert inside.max() < 0.05 * min(found.spacing)


def test_small_deviations_are_taken_and_said(tmp_path):
    made = slices(ramp(), UPRIGHT)
    shifted(made, 4, 0.04)  # headers round to a tenth of a millimeter
    save(tmp_path, made)
    with pytest.warns(UserWarning, match="slice gaps vary from 2.460 to 2.540 mm"):
        array, geometry = read(tmp_path)
    assert "slice gaps vary" in geometry.steps[-1] and array.shape == (6, 5, DEEP)


def test_what_places_cannot_show_is_said(tmp_path):
    made = slices(ramp(), UPRIGHT, SpacingBetweenSlices="1.25", ImagesInAcquisition=12)
    for one in made:
        one.InstanceNumber = int(one.InstanceNumber) + 3
    save(tmp_path, made)
    with pytest.warns(UserWarning) as told:
        _, geometry = read(tmp_path)
    assert len(told) == 3
    steps = " ".join(geometry.steps)
    assert "states 1.25 mm" in steps and "counts 12 images, 9 are here" in steps and "begin at 4" in steps


def test_every_second_slice_missing_is_not_silent(tmp_path):
    save(tmp_path, slices(ramp(), UPRIGHT)[::2])
    with pytest.warns(UserWarning, match="not consecutive"):
        read(tmp_path)
    assert "not consecutive" in " ".join(read(tmp_path)[1].steps)


def test_rescale_per_slice_is_applied_per_slice(tmp_path):
    save(tmp_path, slices(ramp(), UPRIGHT, RescaleSlope=[ds(1 + k) for k in range(DEEP)], RescaleIntercept="-1024"))
    array, geometry = read(tmp_path)
    k = np.arange(DEEP)
    assert np.allclose(align(array, geometry, UPRIGHT, array.shape)[0][0, 0], 100 * k * (1 + k) - 1024)
    assert "values rescaled slice by slice" in geometry.steps


@pytest.mark.parametrize("names", ["uid", "bare", "ima", "sorted wrongly", "study"])
def test_names_of_files_do_not_matter(tmp_path, names):
    made = slices(ramp(), UPRIGHT)
    called = {
        "uid": [one.SOPInstanceUID for one in made],
        "bare": [f"IM{k:06d}" for k in range(DEEP)],
        "ima": [f"x{k}.IMA" for k in range(DEEP)],
        "sorted wrongly": [f"{(k * 5) % 9}.dcm" for k in range(DEEP)],
        "study": [f"ST0/SE{k % 2}/IM{k}" for k in range(DEEP)],
    }[names]
    for name in called:
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
    save(tmp_path / "s", made, called)
    (tmp_path / "s" / "notes.txt").write_text("not a slice")
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 9)
    array, geometry = read(tmp_path / "s")
    assert np.array_equal(align(array, geometry, UPRIGHT, array.shape)[0], ramp())
    if names != "study":
        assert find_volumes(tmp_path) == [tmp_path / "s"]


def two_series(folder):
    save(folder, slices(ramp(), UPRIGHT, SeriesDescription="THIN axial", SeriesNumber=3))
    other = slices(ramp((4, 4, 5)), grid((1, 1, 5)), SeriesDescription="thick", SeriesNumber=4)
    for one in other:
        one.SeriesInstanceUID = "1.2.9"
    save(folder, other, [f"b{k}.dcm" for k in range(5)])


def test_several_series_are_listed_and_one_is_chosen(tmp_path):
    two_series(tmp_path)
    with pytest.raises(ReadError) as told:
        read(tmp_path)
    for part in (
        "2 DICOM series",
        "--series",
        "'THIN axial'",
        "'thick'",
        "9 slices of 6 x 5",
        "0.8 x 0.8 x 2.5 mm",
        "1.2.9",
    ):
        assert part in str(told.value)
    for wanted, shape in ((4, (4, 4, 5)), ("4", (4, 4, 5)), ("1.2.9", (4, 4, 5)), ("thin AXIAL", (6, 5, 9))):
        assert read(tmp_path, series=wanted)[0].shape == shape
    assert read_volume(tmp_path, series="thick")[1].header["series_description"] == "thick"
    with pytest.raises(ReadError, match="no series '7'; there are"):
        read(tmp_path, series=7)
    with pytest.raises(ReadError, match="series= chooses within a folder"):
        read(next(tmp_path.iterdir()), series=3)


def test_segmentations_and_scouts_are_left_aside_and_said(tmp_path):
    save(tmp_path, slices(ramp(), UPRIGHT))
    scout = slices(ramp((9, 9, 1)), grid((1, 1, 1), (1.2, 0, 0)), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save(tmp_path, scout, ["scout.dcm"])
    other = dataset("1.2.840.10008.5.1.4.1.1.66.4", "SEG", "1.2.77")
    set_pixels(other, np.zeros((4, 4), np.int16))
    save(tmp_path, [other], ["seg.dcm"])
    array, geometry = read(tmp_path)
    assert array.shape == (6, 5, DEEP)
    assert "1 SEG file left aside" in geometry.steps and "1 localizer images left aside: scout.dcm" in geometry.steps
    with pytest.raises(ReadError, match="segmentation, not an image"):
        read(tmp_path / "seg.dcm")
    assert find_volumes(tmp_path) == [tmp_path]


@pytest.mark.parametrize(
    "tag", ["TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber", "EchoTime", "DiffusionBValue"]
)
def test_phases_are_listed_and_one_is_chosen(tmp_path, tag):
    made = []
    for phase in range(3):
        made += slices(ramp() + phase, UPRIGHT, **{tag: [phase * 40 + 40] * DEEP}, ContentTime="101010")
    save(tmp_path, made, [f"{k:03d}.dcm" for k in range(len(made))])
    with pytest.raises(ReadError, match=rf"3 phases.*--phase.*0: {tag} 40 \(9 slices\); 1: {tag} 80"):
        read(tmp_path)
    for wanted, phase in ((0, 0), ("2", 2), ("80", 1)):
        array, geometry = read(tmp_path, phase=wanted)
        assert np.array_equal(align(array, geometry, UPRIGHT, array.shape)[0], ramp() + phase)
    assert f"phase 1 of 3 taken: {tag} 80" in geometry.steps
    with pytest.raises(ReadError, match="phase '9' is not there"):
        read(tmp_path, phase="9")


def test_a_phase_that_lacks_a_slice_is_refused(tmp_path):
    made = slices(ramp(), UPRIGHT, TriggerTime="10") + slices(ramp(), UPRIGHT, TriggerTime="20")
    made.pop(3)
    save(tmp_path, made, [f"{k:03d}.dcm" for k in range(len(made))])
    with pytest.raises(ReadError, match="a slice is missing"):
        read(tmp_path, phase=0)
    assert read(tmp_path, phase=1)[0].shape == (6, 5, DEEP)


def test_two_tags_tell_phases_apart_where_one_does_not(tmp_path):
    made = []
    for echo, kind in ((10, "M"), (10, "P"), (20, "M"), (20, "P")):
        made += slices(ramp(), UPRIGHT, EchoTime=str(echo), ImageType=["ORIGINAL", "PRIMARY", kind])
    save(tmp_path, made, [f"{k:03d}.dcm" for k in range(len(made))])
    with pytest.raises(ReadError, match="4 phases"):
        read(tmp_path)
    assert "EchoTime 20" in read(tmp_path, phase=3)[1].steps[0]


def test_a_folder_of_cines_is_not_a_series(tmp_path):
    for k in range(3):
        cine = dataset("1.2.840.10008.5.1.4.1.1.3.1", "US")
        cine.NumberOfFrames = 4
        set_pixels(cine, np.full((4, 5, 6), 10 * k, np.int16) + np.arange(4, dtype=np.int16)[:, None, None])
        save(tmp_path, [cine], [f"c{k}.dcm"])
    with pytest.raises(ReadError, match="3 files of many frames .cines.; give one of them: c0.dcm"):
        read(tmp_path)
    assert find_volumes(tmp_path) == [tmp_path / f"c{k}.dcm" for k in range(3)]
    with pytest.raises(ReadError, match="a cine of 4 frames"):
        read_volume(tmp_path / "c1.dcm")
    assert read(tmp_path / "c1.dcm")[0].shape == (4, 5, 6)
    assert np.array_equal(read(tmp_path / "c1.dcm", frame=2)[0], np.full((5, 6), 12))
    with pytest.raises(ReadError, match="frame 4 is not there; there are 0 to 3"):
        read(tmp_path / "c1.dcm", frame=4)


def test_one_enhanced_object_in_a_folder_is_read(tmp_path):
    enhanced(ramp(), UPRIGHT, range(DEEP)[::-1]).save_as(tmp_path / "e", enforce_file_format=True)
    array, geometry = read(tmp_path)
    assert np.array_equal(align(array, geometry, UPRIGHT, array.shape)[0], ramp())
    assert grid_distance(geometry, UPRIGHT, array.shape) >= 0 and find_volumes(tmp_path) == [tmp_path / "e"]


def test_colors_are_no_volume_and_a_damaged_slice_is_named(tmp_path):
    made = slices(ramp(), UPRIGHT)
    for one in made:
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 8, 8, 7, 0
        set_pixels(one, np.zeros((5, 6, 3), np.uint8))
        one.Rows, one.Columns = 5, 6
    save(tmp_path / "rgb", made)
    with pytest.raises(ReadError, match="slices in color"):
        read(tmp_path / "rgb")
    paths = save(tmp_path / "cut", slices(ramp(), UPRIGHT))
    paths[-1].write_bytes(paths[-1].read_bytes()[:-20])
    with pytest.raises(ReadError, match=rf"{paths[-1].name}.*(short|damaged)"):
        read(tmp_path / "cut")
    paths[-1].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(ReadError, match="Git LFS pointer.*git lfs pull"):
        read(tmp_path / "cut")
    paths[-1].write_bytes(b"<!DOCTYPE html><html>sorry</html>")
    with pytest.raises(ReadError, match="an HTML page"):
        read(tmp_path / "cut")
    paths[-1].write_bytes(b"")
    with pytest.raises(ReadError, match="empty"):
        read(tmp_path / "cut")


def test_a_sound_series_gives_no_warning(tmp_path):
    save(tmp_path, slices(ramp(), UPRIGHT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, geometry = read(tmp_path)
    assert geometry.steps == () and len(geometry.header["files"]) == DEEP and FRAME_OF_REFERENCE


def test_a_tilt_within_half_a_degree_counts_where_it_moves_pixels(tmp_path):
    big = np.zeros((200, 200, 4), np.int16)
    for degrees, fine in ((0.01, True), (0.3, False)):
        made = slices(big, UPRIGHT)
        tilted(2, degrees)(made)
        save(tmp_path / str(degrees), made)
        if fine:
            assert read(tmp_path / str(degrees))[0].shape == big.shape
        else:
            with pytest.raises(ReadError, match="tilted by 0.30 degrees"):
                read(tmp_path / str(degrees))


def test_folders_below_count_only_where_there_is_no_image_beside_them(tmp_path):
    save(tmp_path, slices(ramp(), UPRIGHT))
    other = slices(ramp((4, 4, 5)), grid((1, 1, 5)), SeriesInstanceUID="1.2.9")
    save(tmp_path / "sub", other)
    assert read(tmp_path)[0].shape == (6, 5, DEEP) and read(tmp_path / "sub")[0].shape == (4, 4, 5)
    assert find_volumes(tmp_path) == [tmp_path, tmp_path / "sub"]


@pytest.mark.parametrize("name", [name for name, (_, _, can_be) in IRREGULAR.items() if can_be])
def test_what_a_result_keeps_of_a_resampled_series_names_files_and_no_folders(tmp_path, name):
    made = slices(ramp(), UPRIGHT, RescaleSlope="1", RescaleIntercept="-1024")
    IRREGULAR[name][0](made)
    save(tmp_path / "Doe_John", made)
    steps = " ".join(read(tmp_path / "Doe_John", irregular="resample")[1].steps)
    assert "resampled from" in steps and str(tmp_path) not in steps and "Doe_John" not in steps


def test_slices_of_inverted_grey_values_are_counted_in_words(tmp_path):
    made = slices(ramp(), UPRIGHT)
    made[4].PhotometricInterpretation = "MONOCHROME1"
    save(tmp_path, made)
    with pytest.raises(ReadError, match=r"\(8 of MONOCHROME2, 1 of MONOCHROME1\)"):
        read(tmp_path)

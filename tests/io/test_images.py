"""One road from every kind of source to 8-bit RGB, what is said of it, and the way back."""

import io

import numpy as np
import pydicom
import pytest
from image_files import COLUMNS, RAMP, ROWS, dicom
from PIL import Image
from pydicom.dataset import Dataset

from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.io.errors import ImageError
from unimed.io.images import load, load_stack
from unimed.io.limits import ReadError
from unimed.io.read import read, read_bytes
from unimed.io.windows import CT_WINDOWS_HU
from unimed.io.write import write_nifti


@pytest.mark.parametrize("place", [None, (0, 0, 5)])
def test_rows_stay_rows_and_no_value_jumps_over_another(tmp_path, place):
    picture = load(dicom(tmp_path / "a.dcm", place=place)).pixels
    assert picture.shape == (ROWS, COLUMNS) and picture.dtype == np.uint8
    assert (np.diff(picture.ravel().astype(int)) >= 0).all() and picture.min() == 0 and picture.max() == 255


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("tags", [{}, {"WindowCenter": "2000", "WindowWidth": "3000"}, {"Modality": "CT"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_inverted_photometry(tmp_path, photometric, tags, dtype):
    pixels = RAMP.astype(dtype) if dtype == np.uint16 else (RAMP // 16).astype(dtype)
    plain = load(dicom(tmp_path / "p.dcm", pixels, **tags)).pixels
    image = load(dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, **tags))
    if photometric == "MONOCHROME1":
        # Without a window of its own each goes by its percentiles, in which zeros of an inverted file count.
        assert np.abs(image.pixels.astype(int) - (255 - plain)).max() <= (0 if tags or dtype == np.uint8 else 8)
        assert any("inverted" in step for step in image.steps)
    else:
        assert np.array_equal(image.pixels, plain) and not any("inverted" in step for step in image.steps)


def test_windows_and_where_they_come_from(tmp_path):
    path = dicom(tmp_path / "a.dcm", WindowCenter=["1000", "40"], WindowWidth=["500", "80"], Modality="CT")
    by_file = load(path)
    assert np.array_equal(by_file.pixels == 0, RAMP <= 750) and "window of the file 1000/500" in by_file.steps[-1]
    for window in ((40, 80), "brain"):
        given = load(path, window=window, site="lung")
        assert given.window.low == 0 and given.window.high == 80 and given.steps[-1].startswith("window")
    by_site = load(dicom(tmp_path / "b.dcm", Modality="CT"), site="lung")
    level, width = CT_WINDOWS_HU["lung"]
    assert by_site.window.low == level - width / 2 and "CT window lung" in by_site.steps[-1]
    unknown = load(dicom(tmp_path / "c.dcm", Modality="CT"))
    assert "CT window soft tissue" in str(unknown.steps) and "site is not known" in str(unknown.steps)
    with pytest.raises(ImageError, match="b.dcm: no CT window for site 'knee'"):
        load(tmp_path / "b.dcm", site="knee")


def test_the_table_of_a_file(tmp_path):
    """A VOI LUT maps rescaled values; what lies outside takes the nearest entry; MONOCHROME1 is inverted after it."""
    from pydicom.pixels import apply_voi

    item = Dataset()
    entries = (np.linspace(0, 1, 1000) ** 2 * 4095).astype(np.uint16)
    item.LUTDescriptor, item.LUTData = [1000, 500, 12], entries.tobytes()
    path = dicom(tmp_path / "v.dcm", VOILUTSequence=[item], WindowCenter="9", WindowWidth="3")
    image = load(path)
    expected = apply_voi(RAMP.copy(), pydicom.dcmread(path)) / 4095 * 255
    assert np.abs(image.pixels - expected).max() <= 0.51 and image.steps == ("table of the file (VOI LUT)",)
    turned = load(dicom(tmp_path / "w.dcm", VOILUTSequence=[item], PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(turned.pixels, 255 - image.pixels)
    assert load(path, window=(2000, 1000)).window.table is None


def test_palette_dicom(tmp_path):
    tags = dict(PhotometricInterpretation="PALETTE COLOR", Modality="US")
    for colour, last in (("Red", 255), ("Green", 128), ("Blue", 0)):
        table = np.zeros(256, np.uint16)
        table[2] = last * 257
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    image = load(dicom(tmp_path / "p.dcm", np.full((8, 8), 2, np.uint8), **tags))
    assert image.rgb[0, 0].tolist() == [255, 128, 0] and not image.is_gray


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
)
def test_colour_dicom(name):
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    image = load(path)
    expected = pydicom.dcmread(path).pixel_array
    assert np.array_equal(image.rgb, expected)


def test_frames(tmp_path):
    frames = np.stack([RAMP * (k + 1) // 3 for k in range(3)]).astype(np.uint16)
    path = dicom(tmp_path / "c.dcm", frames)
    with pytest.raises(ImageError, match="3 frames"):
        load(path)
    shown = [load(path, frame=k) for k in range(3)]
    assert len({image.window for image in shown}) == 1 and "frame 2 of 3" in shown[2].steps
    assert shown[0].rgb.max() < shown[1].rgb.max() < shown[2].rgb.max()
    with pytest.raises(ImageError, match="no frame 3"):
        load(path, frame=3)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::5])
def test_slices_of_volumes_stand_upright_and_lead_back(tmp_path, orientation):
    """Front or head up, the patient's left on the right; a mask of the picture lies at the same place in the file."""
    for axis, (up, aside) in {2: ("A", "L"), 1: ("S", "L"), 0: ("S", "P")}.items():
        shape = [5, 7, 4]
        shape[axis] = 1
        values = np.indices(shape, dtype=np.int16)
        ras = Geometry(np.diag([1.0, 1, 1, 1]))
        for letter, direction in ((up, 0), (aside, 1)):
            along = {"A": 1, "S": 2, "L": 0, "P": 1}[letter]
            grows = values[along] * (1 if letter in "AS" else -1)
            stored, geometry = reorient(grows + 100, ras, orientation)
            image = load((np.ascontiguousarray(stored), geometry), window=(100, 20))
            steps = np.diff(image.pixels.astype(int), axis=direction)
            assert (steps < 0).all() if direction == 0 else (steps > 0).all()
            mask = image.pixels > np.median(image.pixels)
            back = image.to_source(mask)
            assert back.shape == stored.shape and np.array_equal(back, image.window(stored) > np.median(image.pixels))
            row, column = np.argwhere(mask)[0]
            place = np.rint(image.points_to_source([(column, row)])[0]).astype(int)
            assert back[tuple(place)]


def test_a_slice_of_a_volume_has_the_window_of_the_volume():
    volume = np.random.default_rng(0).integers(0, 1000, (8, 9, 5)).astype(np.int16)
    volume[..., 2] //= 10
    geometry = Geometry(np.diag([-1.0, -1, 2, 1]))
    with pytest.raises(ImageError, match="is a volume"):
        load((volume, geometry))
    dark, bright = (load((volume, geometry), frame=k) for k in (2, 3))
    assert dark.window == bright.window and dark.rgb.max() < 60 and "slice 2 of 5" in dark.steps
    mask = np.zeros(dark.rgb.shape[:2], bool)
    mask[1, 3] = True
    back = dark.to_source(mask)
    assert back.shape == volume.shape and back.sum() == 1 and back[..., 2].any()
    assert np.allclose(np.argwhere(back)[0], dark.points_to_source([(3, 1)])[0])


def test_a_stack_has_one_window(tmp_path):
    pages = [RAMP, RAMP // 10, RAMP // 2]
    paths = []
    for number, page in enumerate(pages):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(page).save(paths[-1])
    images = load_stack(paths)
    assert len({image.window for image in images}) == 1
    assert images[0].rgb.max() == 255 and images[1].rgb.max() < 40
    assert np.array_equal(load_stack(paths, chosen=[1])[0].rgb, images[1].rgb)
    Image.fromarray(RAMP[:3]).save(paths[1])
    with pytest.raises(ImageError, match="1.png: slice is"):
        load_stack(paths)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_way_back_from_a_turned_picture(tmp_path, orientation):
    stored = np.zeros((10, 16), np.uint8)
    stored[2, 11] = 255
    picture = Image.fromarray(stored)
    exif = picture.getexif()
    exif[274] = orientation
    picture.save(tmp_path / "x.png", exif=exif)
    image = load(tmp_path / "x.png")
    mask = image.pixels > 0
    assert np.array_equal(image.to_source(mask), stored > 0)
    row, column = np.argwhere(mask)[0]
    assert image.points_to_source([(column, row)]).tolist() == [[2, 11]]
    assert image.box_to_source((column, row, column + 1, row + 1)) == (11, 2, 12, 3)
    with pytest.raises(ValueError, match="a mask of"):
        image.to_source(np.zeros((3, 3), bool))


def test_an_image_is_taken_as_it_is():
    image = load(RAMP)
    assert load(image) is image and image.name == "" and image.geometry.is_physical is False


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 5, 6), np.uint8), "4 frames"),
        (np.full((4, 4), np.nan), "NaN or Inf"),
        (np.full((4, 4, 3), np.inf), "NaN or Inf"),
        (np.zeros((4, 4), complex), "must be numbers"),
        (np.zeros(4), "is no image"),
        (7, "not int"),
        ([1, 2], "not list"),
    ],
)
def test_what_is_no_image(source, message):
    with pytest.raises(ImageError, match=message):
        load(source)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        load(tmp_path / "gone.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ReadError, match="empty.png: the file is empty"):
        load(tmp_path / "empty.png")
    (tmp_path / "page.png").write_text("<!DOCTYPE html><html>")
    with pytest.raises(ReadError, match="an HTML page"):
        load(tmp_path / "page.png")
    for data in (b"", b"GIF89a", b"\0" * 128 + b"DICMxx"):
        with pytest.raises(ReadError, match="shard.tar/7"):
            load(data, name="shard.tar/7")
        with pytest.raises(ReadError, match="shard.tar/7"):
            read_bytes(data, "shard.tar/7")


@pytest.mark.parametrize("compat", [None, "reference"])
def test_published_readers_cut_deep_values(tmp_path, compat):
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    image = load(tmp_path / "x.png", compat=compat)
    assert np.array_equal(image.pixels, RAMP >> 8) == (compat == "reference")
    with pytest.raises(ValueError, match="compat"):
        load(RAMP, compat="old")


#: 8-bit content as files, with what tells how it is to be read.
def doors(tmp_path, values):
    """Name of a door -> the image that comes through it, for one grey content of 8 bit."""
    stored = Image.fromarray(values)
    stored.save(tmp_path / "a.png")
    stream = io.BytesIO()
    stored.save(stream, "TIFF")
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(values[::-1, ::-1].copy()).save(tmp_path / "e.png", exif=exif)
    Image.fromarray(values).save(tmp_path / "s.tif", save_all=True, append_images=[Image.fromarray(0 * values)])
    opaque = Image.fromarray(np.dstack([values, np.full_like(values, 255)]))
    opaque.save(tmp_path / "la.png")
    dicom(tmp_path / "m1.dcm", 255 - values, PhotometricInterpretation="MONOCHROME1")
    dicom(tmp_path / "m2.dcm", values)
    palette = stored.convert("P")
    palette.save(tmp_path / "p.png")
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = (np.arange(256, dtype=np.uint16) * 257).tobytes()
    dicom(tmp_path / "p.dcm", values, **tags)
    slice_ = Geometry(np.diag([-1.0, -1, 1, 1]))
    write_nifti(tmp_path / "s.nii.gz", np.ascontiguousarray(values.T[..., None]), slice_)
    return {
        "array": load(values),
        "array HxWx1": load(values[..., None]),
        "array HxWx3": load(np.repeat(values[..., None], 3, 2)),
        "array HxWx4": load(np.dstack([values] * 3 + [np.full_like(values, 255)])),
        "PIL": load(stored),
        "PIL RGB": load(stored.convert("RGB")),
        "path": load(str(tmp_path / "a.png")),
        "Path": load(tmp_path / "a.png"),
        "bytes": load((tmp_path / "a.png").read_bytes()),
        "open file": load(io.BytesIO(stream.getvalue())),
        "EXIF": load(tmp_path / "e.png"),
        "EXIF as PIL": load(Image.open(tmp_path / "e.png")),
        "page": load(tmp_path / "s.tif", page=0),
        "opacity": load(tmp_path / "la.png"),
        "palette": load(tmp_path / "p.png"),
        "MONOCHROME1": load(tmp_path / "m1.dcm"),
        "MONOCHROME2": load(tmp_path / "m2.dcm"),
        "DICOM bytes": load((tmp_path / "m1.dcm").read_bytes()),
        "DICOM dataset": load(pydicom.dcmread(tmp_path / "m1.dcm")),
        "PALETTE COLOR": load(tmp_path / "p.dcm"),
        "NIfTI slice": load(tmp_path / "s.nii.gz"),
        "array and geometry": load(read(tmp_path / "s.nii.gz")),
    }


def test_every_source_of_one_content_gives_the_same_pixels(tmp_path):
    values = np.random.default_rng(4).integers(0, 256, (12, 17), dtype=np.uint8)
    found = doors(tmp_path, values)
    equal = [name for name, image in found.items() if np.array_equal(image.rgb, np.repeat(values[..., None], 3, 2))]
    print(f"{len(equal)} of {len(found)} sources")
    assert equal == list(found)

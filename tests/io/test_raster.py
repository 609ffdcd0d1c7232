"""Picture files of every kind as a viewer shows them, in the depth of the file."""

import io

import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from unimed.io.limits import ReadError
from unimed.io.raster import decode, shown, steps_of
from unimed.io.turns import INVERSE, turned, turned_back

GREY = np.random.default_rng(0).integers(0, 256, (12, 17), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 17, 3), dtype=np.uint8)
DEEP = np.random.default_rng(2).integers(0, 4096, (12, 17)).astype(np.uint16)
DEEP_COLOUR = np.random.default_rng(3).integers(0, 4096, (12, 17, 3)).astype(np.uint16)


def saved(picture, path, **options):
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "jp2", "gif"])
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_files_keep_their_pixels(tmp_path, suffix, values):
    if suffix == "gif" and values.ndim == 3:
        values = np.repeat(GREY[..., None] // 64 * 64, 3, 2)  # within 256 colours
    options = {"webp": dict(lossless=True), "jp2": dict(irreversible=False)}.get(suffix, {})
    found = shown(decode(saved(values, tmp_path / f"x.{suffix}", **options)))
    if found.ndim > values.ndim:
        assert (found == found[..., :1]).all()
        found = found[..., 0]
    assert np.array_equal(found, values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("as_pil", [False, True])
def test_exif_orientation(tmp_path, orientation, suffix, as_pil):
    """As every viewer shows it, by path as by PIL picture; the two quarter turns swap the sides."""
    blocks = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40 + 20, np.ones((8, 8), np.uint8))
    picture = Image.fromarray(blocks)
    exif = picture.getexif()
    exif[274] = orientation
    path = saved(picture, tmp_path / f"x.{suffix}", exif=exif)
    raster = decode(Image.open(path) if as_pil else path)
    found = shown(raster)
    found = found if found.ndim == 2 else found[..., 0]
    expected = turned(blocks, orientation)
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 4  # JPEG
    assert raster.orientation == orientation and bool(steps_of(raster)) == (orientation != 1)
    assert np.array_equal(turned_back(expected, orientation), blocks) and INVERSE[INVERSE[orientation]] == orientation
    if suffix != "tif":
        assert decode(path, compat="reference").orientation == 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_opacity_is_turned_with_the_picture(tmp_path, orientation):
    alpha = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    picture = Image.fromarray(np.dstack([np.full((2, 3), 90, np.uint8), alpha]), "LA")
    exif = picture.getexif()
    exif[274] = orientation
    found = decode(saved(picture, tmp_path / "x.png", exif=exif)).alpha
    assert np.array_equal(np.rint(found * 255), turned(alpha, orientation))


def test_turns_are_those_of_pillow():
    from PIL import ImageOps

    for orientation in range(1, 9):
        picture = Image.fromarray(GREY)
        picture.getexif()[274] = orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(picture)), turned(GREY, orientation))


def deep_png(path, values):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values, isVector=True), str(path))
    return path


@pytest.mark.parametrize("form", ["path", "bytes", "PIL"])
def test_deep_colour_keeps_its_depth(tmp_path, form):
    paths = [deep_png(tmp_path / "a.png", DEEP_COLOUR)]
    for name, options in {"a": {}, "p": {"planarconfig": "separate"}, "z": {"compression": "deflate"}}.items():
        values = np.moveaxis(DEEP_COLOUR, 2, 0) if name == "p" else DEEP_COLOUR
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="rgb", **options)
        paths.append(tmp_path / f"{name}.tif")
    for path in paths:
        source = {"path": path, "bytes": path.read_bytes(), "PIL": Image.open(path)}[form]
        assert np.array_equal(shown(decode(source)), DEEP_COLOUR), path


def test_deep_grey_with_opacity(tmp_path):
    """A PNG of 16 bit grey and opacity, written by hand, for few tools write it."""
    import struct
    import zlib

    alpha = np.full(DEEP.shape, 65535, np.uint16)
    alpha[:3] = 0
    rows = np.stack([DEEP, alpha], -1).astype(">u2").tobytes()
    width = DEEP.shape[1] * 4
    raw = b"".join(b"\0" + rows[k * width : (k + 1) * width] for k in range(len(DEEP)))

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", DEEP.shape[1], DEEP.shape[0], 16, 4, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    found = shown(decode(data))
    assert np.array_equal(found[3:], DEEP[3:]) and not found[:3].any()


@pytest.mark.parametrize("values", [GREY, DEEP, DEEP.astype(np.float32) / 4096, DEEP > 2000],
                         ids=["8", "16", "float", "1"])  # fmt: skip
def test_white_is_zero_in_every_depth(tmp_path, values):
    """MinIsWhite shows the smallest stored value white, whatever the depth."""
    tifffile.imwrite(tmp_path / "w.tif", values, photometric="miniswhite")
    found = shown(decode(tmp_path / "w.tif")).astype(float)
    low, high = found[values == values.min()].mean(), found[values == values.max()].mean()
    assert low > high and len(np.unique(found)) == len(np.unique(values))
    if values.dtype.kind == "u":
        assert np.array_equal(found, np.iinfo(values.dtype).max - values.astype(float))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32, np.float64, np.float16])
def test_numbers_of_every_kind(tmp_path, dtype):
    values = (DEEP.astype(np.float64) - (1024 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", values)
    assert np.array_equal(shown(decode(tmp_path / "x.tif")).astype(np.float64), values.astype(np.float64))


def test_pages(tmp_path):
    pages = [np.full((5, 7), value, np.uint16) for value in (10, 20, 30)]
    tifffile.imwrite(tmp_path / "s.tif", np.stack(pages), photometric="minisblack")
    with pytest.raises(ReadError, match=r"s.tif: 3 pages; say which one with page= \(0 to 2\)"):
        decode(tmp_path / "s.tif")
    raster = decode(tmp_path / "s.tif", page=1)
    assert (shown(raster) == 20).all() and "page 1 of 3" in steps_of(raster)
    for page in (3, -1):
        with pytest.raises(ReadError, match="no page"):
            decode(tmp_path / "s.tif", page=page)
    assert (shown(decode(tmp_path / "s.tif", compat="reference")) == 10).all()
    with pytest.raises(ReadError, match="it has one"):
        decode(saved(GREY, tmp_path / "one.png"), page=1)


def test_smaller_copies_are_no_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(GREY)
        writer.write(GREY[::2, ::2], subfiletype=1)
    raster = decode(tmp_path / "p.tif")
    assert np.array_equal(shown(raster), GREY) and "1 smaller copies" in steps_of(raster)[0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_picture_of_an_animation_is_said(tmp_path, suffix):
    frames = [Image.fromarray(np.full((6, 9), value, np.uint8)) for value in (0, 120, 240)]
    options = {"webp": dict(lossless=True)}.get(suffix, {})
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], duration=50, **options)
    raster = decode(tmp_path / f"x.{suffix}")
    assert (shown(raster) == 0).all() and "frame 0 of 3" in steps_of(raster)
    assert abs(int(shown(decode(tmp_path / f"x.{suffix}", page=2)).max()) - 240) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB key", "L key"])
def test_what_is_transparent_is_black(tmp_path, mode):
    """The colours beneath are no part of the picture: half opaque is half as bright."""
    grey = np.full((4, 6), 200, np.uint8)
    opacity = np.repeat(np.array([[0, 128, 255]], np.uint8), 2, 1).repeat(4, 0)
    path = tmp_path / "x.png"
    if mode == "RGBA":
        saved(np.dstack([grey] * 3 + [opacity]), path)
    elif mode == "LA":
        saved(np.dstack([grey, opacity]), path)
    elif mode == "P":
        picture = Image.fromarray(np.where(opacity == 0, 0, 1).astype(np.uint8))
        picture.putpalette([200, 200, 200] * 256)
        saved(picture, path, transparency=0)
    else:
        picture = Image.fromarray(np.where(opacity == 0, 7, 200).astype(np.uint8)).convert(mode[:-4])
        saved(picture, path, transparency=(7, 7, 7) if mode == "RGB key" else 7)
    raster = decode(path)
    found = shown(raster)
    found = found if found.ndim == 2 else found[..., 1]
    assert (
        (found[:, :2] == 0).all() and (found[:, 4:] == 200).all() and "transparent parts on black" in steps_of(raster)
    )
    if mode in ("RGBA", "LA"):
        assert (found[:, 2:4] == 100).all()
        assert (shown(raster, "reference") == 200).all()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "1", "LAB"])
def test_other_modes(tmp_path, mode):
    white = Image.new("RGB", (5, 3), (255, 255, 255))
    if mode == "LAB":
        from PIL import ImageCms

        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        white = ImageCms.applyTransform(white, to_lab)
    suffix = "jpg" if mode == "YCbCr" else "tif"
    found = shown(decode(saved(white.convert(mode) if mode != "LAB" else white, tmp_path / f"x.{suffix}")))
    assert found.min() >= 253 and found.dtype == np.uint8


def test_damage_is_named(tmp_path):
    path = saved(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8), tmp_path / "a.png")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for source, name in ((path, "a.png"), (whole[: len(whole) // 2], "stored bytes"), (b"no picture", "stored bytes")):
        with pytest.raises(ReadError, match=name):
            decode(source)
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "gone.png")


def test_damaged_files_end_in_named_errors(tmp_path, caplog):
    """Bytes changed and files cut at random: an error that names the file, or a picture, and nothing else."""
    draw = np.random.default_rng(5)
    sources = []
    for values, form in ((GREY, "PNG"), (COLOUR, "JPEG"), (DEEP, "TIFF"), (COLOUR, "WEBP"), (GREY, "GIF")):
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, form)
        sources.append(stream.getvalue())
    for number in range(150):
        data = bytearray(sources[number % len(sources)])
        for place in draw.integers(0, len(data), 4):
            data[place] = draw.integers(0, 256)
        data = bytes(data[: draw.integers(1, len(data))] if number % 3 == 0 else data)
        try:
            assert shown(decode(data, name="case")).ndim in (2, 3)
        except ReadError as error:
            assert "case" in str(error) and "\n" not in str(error)
    assert not caplog.records  # no library says more than the error

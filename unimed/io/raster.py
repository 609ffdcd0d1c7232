"""Picture files (PNG, JPEG, TIFF, WebP, GIF, BMP, JPEG 2000) as arrays: what a viewer shows, before any window.

Pillow decodes; what it would cut to 8 bit or misread (deep colour, float or 64-bit TIFF) is decoded by SimpleITK or
tifffile. `decode` keeps what label images need (palette indices, opacity); `shown` makes the picture of it.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import tempfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unimed.io.limits import ReadError, refuse_too_large
from unimed.io.turns import WORDS, turned

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".jp2", ".j2k", ".jpx", ".j2c",
)  # fmt: skip
_EXIF_ORIENTATION, _TIFF_SUBFILE, _TIFF_PHOTOMETRIC, _TIFF_BITS = 274, 254, 262, 258
#: Kinds of TIFF pages that are no picture of their own: a smaller copy (1), a transparency mask (4).
_NO_PAGE = 1 | 4


@dataclass(frozen=True, eq=False)
class Raster:
    """One decoded page, upright.

    Attributes:
        values: HxW or HxWx3; palette indices where `palette` is given. Bright is large, whatever the file stores.
        palette: [N, 3] uint8. alpha: HxW float32 in [0, 1], None where everything is opaque.
        form: "PNG", "JPEG", ... orientation: EXIF orientation that was applied, 1 for none.
        bits: per channel as stored. steps: what was done, in words.
        lossy: edges and background are noise (JPEG, WebP unless lossless).
    """

    values: np.ndarray
    form: str
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    orientation: int = 1
    bits: int = 8
    steps: tuple[str, ...] = ()
    lossy: bool = False


def shown(raster: Raster, compat: str | None = None) -> np.ndarray:
    """The picture: palette looked up, what is transparent on black. HxW or HxWx3 of the depth of the file.

    `compat="reference"` drops the opacity, as readers that convert to RGB do.
    """
    values = raster.values if raster.palette is None else raster.palette[raster.values]
    if raster.alpha is None or compat == "reference":
        return np.ascontiguousarray(values)
    alpha = raster.alpha if values.ndim == 2 else raster.alpha[..., None]
    mixed = values * alpha
    return np.ascontiguousarray(mixed if values.dtype.kind == "f" else np.rint(mixed).astype(values.dtype))


def steps_of(raster: Raster, compat: str | None = None) -> tuple[str, ...]:
    """What `decode` and `shown` did, in words; nothing for an ordinary 8-bit picture."""
    steps = list(raster.steps)
    if raster.palette is not None:
        steps.append("palette looked up")
    if raster.alpha is not None:
        steps.append("opacity dropped" if compat == "reference" else "transparent parts on black")
    if raster.orientation != 1:
        steps.append(f"{WORDS[raster.orientation]} (EXIF orientation {raster.orientation})")
    return tuple(steps)


def decode(source, *, page: int | None = None, compat: str | None = None, name: str = "") -> Raster:
    """Decode one page of a path, of bytes or of a PIL image.

    Args:
        page: index from 0. A TIFF of several pages needs it; of an animation (GIF, WebP, PNG) the first picture is
            taken without it, and the steps say so. Smaller copies in a TIFF (pyramids) are no pages.
        compat: "reference" as readers that open and convert with Pillow do: the first page, no EXIF turn.

    Raises:
        ReadError: no picture, damaged, too many pixels, several pages and no `page`, or no such page.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Image.Image):
        # A picture that was not loaded yet is decoded from its file, in full depth.
        if getattr(source, "tile", None) and getattr(source, "filename", "") and Path(str(source.filename)).is_file():
            frame = page if page is not None else source.tell() or None
            return decode(str(source.filename), page=frame, compat=compat, name=name)
        return _named(name or "the PIL image", _from_pillow, source, None, page, compat, name or "the PIL image")
    name = name or (str(source) if not isinstance(source, bytes) else "the stored bytes")
    data = source if isinstance(source, bytes) else None

    def opened():
        # A stream and not a path: Pillow maps plain TIFF files into memory and then turns them wrongly.
        with io.BytesIO(data) if data is not None else open(source, "rb") as stream:
            try:
                image = Image.open(stream)
            except UnidentifiedImageError:
                if _is_tiff(data, source):
                    return _from_tifffile(data, source, page, compat, name)
                raise
            with image:
                return _from_pillow(image, data if data is not None else source, page, compat, name)

    return _named(name, opened)


def _named(name: str, work, *arguments):
    """Whatever a library raises becomes one line that names the file."""
    from PIL import Image

    try:
        return work(*arguments)
    except (ReadError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Image.DecompressionBombError as error:
        raise ReadError(f"{name}: {error}; cut it into tiles first") from error
    except Exception as error:  # each library has its own idea of what a damaged file raises
        message = " ".join(re.sub(r"<_io\.\w+[^>]*>", "the stored bytes", str(error)).split())
        message = message.removesuffix(" the stored bytes") or type(error).__name__
        raise ReadError(f"{name}: damaged or not an image ({message})") from error


def _from_pillow(image, source, page, compat, name: str) -> Raster:
    form = image.format or "PIL"
    steps, orientation, bits = [], 1, 8
    page, message = _page_of(image, page, compat, name)
    steps += message
    refuse_too_large(name, (image.height, image.width, len(image.getbands())), 1)
    tags = getattr(image, "tag_v2", {}) if form == "TIFF" else {}
    if tags:
        bits = max(tags.get(_TIFF_BITS, (1,)))
    orientation = _orientation_of(image, tags)
    if source is not None and _is_deep_color(image, tags, source):
        if form == "TIFF":
            return _from_tifffile(*_data_or_path(source), page, compat, name)
        values, alpha = _deep_png(source)
        steps.append("16 bit per channel")
        return _upright(Raster(values, form, None, alpha, 1, 16, tuple(steps)), orientation, compat)
    lossy = _is_lossy(image, form)
    image.load()  # Pillow turns a TIFF by its orientation here, and nothing else
    pillow_turned = form == "TIFF" and orientation != 1 and compat != "reference"
    values, palette, alpha = _planes(image, name)
    if values.dtype.kind == "f":
        bits = 32
    elif values.dtype != np.uint8:
        bits = max(bits, 16)
    # Pillow inverts what is stored with white as zero in 1 and 8 bit, and leaves the other depths as they are.
    if tags.get(_TIFF_PHOTOMETRIC) == 0 and image.mode not in ("1", "L") and compat != "reference":
        values = _inverted(values, bits)
        steps.append("inverted (white is zero in the file)")
    raster = Raster(values, form, palette, alpha, 1, bits, tuple(steps), lossy)
    if pillow_turned:
        return replace(raster, orientation=orientation)
    return _upright(raster, orientation, compat)


def _is_lossy(image, form: str) -> bool:
    """Of a picture that is not loaded yet; a loaded WebP no longer tells and counts as lossless."""
    if form != "WEBP" or getattr(image, "fp", None) is None:
        return form in ("JPEG", "MPO")
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    # Each picture of the file is a chunk of one of these kinds.
    lossy, lossless = data.find(b"VP8 ", 12), data.find(b"VP8L", 12)
    return lossy >= 0 and (lossless < 0 or lossy < lossless)


def _upright(raster: Raster, orientation: int, compat) -> Raster:
    if orientation == 1 or compat == "reference":
        return raster
    alpha = None if raster.alpha is None else np.ascontiguousarray(turned(raster.alpha, orientation))
    values = np.ascontiguousarray(turned(raster.values, orientation))
    return replace(raster, values=values, alpha=alpha, orientation=orientation)


def _orientation_of(image, tags) -> int:
    if image.format == "PNG":
        image.load()  # Pillow decodes a PNG to look for its EXIF: a damaged picture must not end as damaged EXIF
    try:
        found = tags.get(_EXIF_ORIENTATION) or image.getexif().get(_EXIF_ORIENTATION, 1)
        return int(found) if int(found) in range(1, 9) else 1
    except Exception:  # damaged EXIF is no reason to refuse a sound picture  # noqa: BLE001
        return 1


def _page_of(image, page: int | None, compat, name: str) -> tuple[int, list[str]]:
    """Go to the page that is meant; returns its number in the file and what is to be said of it."""
    count = getattr(image, "n_frames", 1)
    if count == 1:
        if page not in (None, 0):
            raise ReadError(f"{name}: no page {page}; it has one, page 0")
        return 0, []
    places = list(range(count))
    if image.format == "TIFF":
        kinds = []
        for place in places:
            image.seek(place)
            kinds.append(int(image.tag_v2.get(_TIFF_SUBFILE, 0) or 0))
        places = [place for place, kind in zip(places, kinds, strict=True) if not kind & _NO_PAGE] or places[:1]
        image.seek(places[0])
        if len(places) > 1 and page is None and compat != "reference":
            raise ReadError(
                f"{name}: {len(places)} pages; say which one with page= (0 to {len(places) - 1}), or save it alone"
            )
    place = _chosen(places, page, name)
    image.seek(place)
    if len(places) == 1:
        return place, [f"{count - 1} smaller copies in the file left aside"]
    return place, [f"{'page' if image.format == 'TIFF' else 'frame'} {places.index(place)} of {len(places)}"]


def _chosen(places: list[int], page: int | None, name: str) -> int:
    if page is not None and not 0 <= page < len(places):
        raise ReadError(f"{name}: no page {page}; it has {len(places)}, 0 to {len(places) - 1}")
    return places[page or 0]


def _planes(image, name: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(values, palette, alpha) of a loaded picture of any mode."""
    mode, info = image.mode, image.info
    if mode == "P":
        colors = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colors)] = colors
        alpha = None
        if "transparency" in info or getattr(image.palette, "mode", "RGB") == "RGBA":
            alpha = _opacity(np.asarray(image.convert("RGBA"))[..., 3])
        return np.array(image), palette, alpha
    if mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(image).astype(np.uint16)
        key = info.get("transparency")
        return values, None, _opacity(values != key) if isinstance(key, int) else None
    if mode in ("I", "F"):
        values = np.array(image)
        if mode == "I" and values.size and 0 <= values.min() and values.max() <= 65535:
            values = values.astype(np.uint16)
        return values, None, None
    if mode == "1":
        return np.array(image.convert("L")), None, None
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode in ("L", "RGB") and "transparency" in info):
        gray = mode in ("LA", "La", "L")
        both = np.array(image.convert("LA" if mode == "La" else "RGBA"))
        return (both[..., 0] if gray else both[..., :3]).copy(), None, _opacity(both[..., -1])
    if mode == "L":
        return np.array(image), None, None
    if mode == "LAB":
        return _from_lab(image), None, None
    try:
        return np.array(image.convert("RGB")), None, None
    except ValueError as error:
        raise ReadError(f"{name}: pixels of mode {mode} are not known; save it as RGB or grey") from error


def _opacity(alpha: np.ndarray) -> np.ndarray | None:
    """[0, 1], or None where everything is opaque."""
    if alpha.dtype == np.bool_:
        return None if alpha.all() else alpha.astype(np.float32)
    most = np.iinfo(alpha.dtype).max
    return None if (alpha == most).all() else alpha.astype(np.float32) / np.float32(most)


def _from_lab(image) -> np.ndarray:
    from PIL import ImageCms

    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return np.array(ImageCms.applyTransform(image, to_rgb))


def _inverted(values: np.ndarray, bits: int) -> np.ndarray:
    if values.dtype.kind == "f":
        return (values.max() if values.size else 0) - values
    if values.dtype.kind == "u":
        return (2**bits - 1 - values.astype(np.int64)).astype(values.dtype)
    return ~values


# -- deeper than 8 bit in colour --------------------------------------------------------------------------------------
def _is_deep_color(image, tags, source) -> bool:
    if image.format == "TIFF":
        return len(tags.get(_TIFF_BITS, (1,))) > 1 and max(tags.get(_TIFF_BITS)) > 8
    if image.format != "PNG":
        return False
    depth, kind = _png_head(source)[24:26]
    return depth == 16 and kind in (2, 4, 6)


def _data_or_path(source):
    return (source, None) if isinstance(source, bytes) else (None, source)


def _png_head(source) -> bytes:
    if isinstance(source, bytes):
        return source[:33]
    with open(source, "rb") as stream:
        return stream.read(33)


def _deep_png(source) -> tuple[np.ndarray, np.ndarray | None]:
    """Values uint16 and opacity of a PNG of 16 bit per channel with colour or opacity."""
    from PIL import Image

    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if data[25] == 4:
        # Grey and opacity of two bytes each are stored, and filtered, as red, green, blue and opacity of one byte are.
        head = data[12:24] + bytes((8, 6)) + data[26:29]
        renamed = data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
        with Image.open(io.BytesIO(renamed)) as image:
            parts = np.array(image).astype(np.uint16)
        both = parts[..., 0::2] << 8 | parts[..., 1::2]
        return both[..., 0], _opacity(both[..., 1])
    import SimpleITK

    with tempfile.TemporaryDirectory(prefix="unimed-") as folder:
        path = Path(folder) / "content.png"
        path.write_bytes(data)
        values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    if values.shape[-1] == 4:
        return values[..., :3].copy(), _opacity(values[..., 3])
    return values, None


def _is_tiff(data: bytes | None, path) -> bool:
    if data is None:
        with open(path, "rb") as stream:
            data = stream.read(4)
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@contextmanager
def _unlogged(name: str):
    """Of a damaged file the library logs every tag; here one error is told."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _from_tifffile(data: bytes | None, path, page: int | None, compat, name: str) -> Raster:
    """TIFF that Pillow does not know or would cut to 8 bit: float of any size, deep colour, BigTIFF."""
    import tifffile

    with _unlogged("tifffile"), tifffile.TiffFile(io.BytesIO(data) if data is not None else path) as file:
        pages = [p for p in file.pages if not int(getattr(p, "subfiletype", 0) or 0) & _NO_PAGE] or [file.pages[0]]
        if len(pages) > 1 and page is None and compat != "reference":
            raise ReadError(
                f"{name}: {len(pages)} pages; say which one with page= (0 to {len(pages) - 1}), or save it alone"
            )
        one = pages[_chosen(list(range(len(pages))), page, name)]
        refuse_too_large(name, one.shape, one.dtype.itemsize if one.dtype is not None else 1)
        values = one.asarray()
        photometric, planar = int(one.photometric), int(getattr(one, "planarconfig", 1) or 1)
        tag = one.tags.get(_EXIF_ORIENTATION)
        bits = int(one.bitspersample if not isinstance(one.bitspersample, tuple) else max(one.bitspersample))
    steps = [f"page {page} of {len(pages)}"] if len(pages) > 1 else []
    if values.ndim == 3 and planar == 2:
        values = np.moveaxis(values, 0, 2)
    alpha = None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        alpha = values[..., -1] if values.dtype.kind == "u" else None
        alpha = None if alpha is None else _opacity(alpha)
        values = values[..., :-1]
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim not in (2, 3) or (values.ndim == 3 and (values.shape[2] != 3 or photometric not in (1, 2))):
        raise ReadError(f"{name}: {one.shape} with photometric {photometric} is not an image; save it as RGB or grey")
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    if photometric == 0 and compat != "reference":
        values = _inverted(values, bits)
        steps.append("inverted (white is zero in the file)")
    if values.ndim == 3 and bits > 8:
        steps.append(f"{bits} bit per channel")
    raster = Raster(np.ascontiguousarray(values), "TIFF", None, alpha, 1, bits, tuple(steps))
    return _upright(raster, int(tag.value) if tag is not None and int(tag.value) in range(1, 9) else 1, compat)

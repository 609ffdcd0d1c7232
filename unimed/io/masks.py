"""The road of masks and label images: which pixels are meant, whatever way a tool stored them.

A mask is not a picture: palette entries are labels, not colours; opacity says what is outside; nothing is windowed.
`load_mask` gives bool, `load_labels` numbers; both give remarks on what a careful reader would ask about.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry
from unimed.io.errors import MaskError
from unimed.io.images import Image
from unimed.io.raster import SUFFIXES, Raster, decode
from unimed.io.read import read, read_bytes
from unimed.io.turns import keeps_shape, turned

#: The remark on a mask that was resized on request.
RESIZED = "resized to its image"
#: A mask with more of its border and of its area set than this is likely inverted.
_MOST_OF_BORDER, _MOST_OF_AREA = 0.95, 0.5


def load_mask(
    source,
    *,
    label: int | Sequence[int] | None = None,
    image: Image | None = None,
    shape: tuple[int, int] | None = None,
    resize: bool = False,
    page: int | None = None,
    compat: str | None = None,
    name: str = "",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which pixels belong to a mask.

    Grey values and palette indices are labels: every one but 0 counts (palettes whose entry 0 is not black are read by
    colour). Of colours any channel counts. Transparent pixels are outside. Lossy masks (JPEG, WebP) are cut at half of
    their largest value, fractions between 0 and 1 at one half.

    Args:
        source: path, bytes, PIL image, array HxW, HxWx3 or HxWx4; for volumes see `load_labels`.
        label: the number of a label map, or (red, green, blue); by default everything that is not background.
        image: what the mask belongs to; a mask stored as the picture was, before its EXIF turn, is turned with it.
        shape: (H, W) it must have; by default that of `image`.
        resize: bring a mask of another size to `shape` (nearest); else that is an error.
        compat: "reference": what is above 0 in the first channel, as published readers take it; no EXIF turn.

    Returns:
        (bool HxW, remarks).

    Raises:
        FileNotFoundError, ReadError: it cannot be read.
        MaskError: wrong size, NaN, or a turn of the image that the mask may or may not share.
    """
    raster, name = _raster_of(source, page, compat, name)
    if compat == "reference":
        from unimed.io.raster import shown

        values = shown(raster, compat)
        mask = (values if values.ndim == 2 else values[..., 0]) > 0
        remarks: list[str] = []
    else:
        mask, remarks = _inside(raster, label, name)
    shape = shape or (image.rgb.shape[:2] if image is not None else None)
    if image is not None and compat != "reference":
        mask, added = _with_image(mask, raster, image, name)
        remarks += added
    if shape is not None and mask.shape != tuple(shape):
        mask = _fitted(mask, tuple(shape), resize, name)
        remarks.append(RESIZED)
    if label is None and compat != "reference":
        remarks += _suspicions(mask)
    return mask, tuple(remarks)


def load_labels(
    source, *, shape: tuple[int, ...] | None = None, page: int | None = None, name: str = ""
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A label image or volume: one whole number per pixel, 0 for nothing.

    Palette indices and grey values of any depth are the labels; colours with three equal channels are grey. Volumes
    (paths of NIfTI, NRRD, ... or arrays with three axes) come in the order of the file.

    Returns:
        (integers HxW or (I, J, K), remarks).

    Raises:
        FileNotFoundError, ReadError: it cannot be read.
        MaskError: colours, values that are no whole numbers, or another shape than `shape`.
    """
    remarks: list[str] = []
    if isinstance(source, (str, Path)) and not str(source).lower().endswith(SUFFIXES):
        name = name or str(source)
        values = read(source)[0]
        while values.ndim > 3 and values.shape[-1] == 1:
            values = values[..., 0]
    else:
        raster, name = _raster_of(source, page, None, name)
        values = raster.values
        if values.ndim == 3 and values.shape[2] == 3:
            if (values[..., 0] != values[..., 1]).any() or (values[..., 0] != values[..., 2]).any():
                raise MaskError(f"{name}: colours are no labels; save the map as grey values or with a palette")
            values = values[..., 0]
        if raster.alpha is not None:
            values = np.where(raster.alpha > 0, values, 0)
        if raster.lossy:
            remarks.append(f"labels in a {_lossy_kind(raster)} are noise at every edge; save them as PNG")
    values = whole_numbers(values, name or "labels")
    if shape is not None and values.shape != tuple(shape):
        raise MaskError(f"{name}: label map is {values.shape}, its image {tuple(shape)}")
    return values, tuple(remarks)


def whole_numbers(values: np.ndarray, name: str = "labels") -> np.ndarray:
    """Labels as integers; floats are taken where they are whole.

    Raises:
        MaskError: values that are not whole, or not finite.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise MaskError(f"{name}: labels must be finite numbers, got {values.dtype}")
    rounded = np.rint(values)
    if np.abs(values - rounded).max(initial=0) > 1e-3:
        raise MaskError(f"{name}: labels must be whole numbers; it was likely resized by interpolation, use nearest")
    return rounded.astype(np.int32)


def _raster_of(source, page, compat, name: str) -> tuple[Raster, str]:
    from PIL import Image as Pillow

    if isinstance(source, (str, Path)):
        name = name or str(source)
        if str(source).lower().endswith(SUFFIXES) and Path(source).is_file():
            return decode(str(source), page=page, compat=compat, name=name), name
        return _from_array(*read(source), name), name
    if isinstance(source, Pillow.Image):
        name = name or str(getattr(source, "filename", "") or "mask")
        return decode(source, page=page, compat=compat, name=name), name
    if isinstance(source, (bytes, bytearray)):
        name = name or "the stored bytes"
        if source[128:132] == b"DICM":
            return _from_array(*read_bytes(bytes(source), name), name), name
        return decode(bytes(source), page=page, compat=compat, name=name), name
    return _from_array(np.asarray(source), Geometry.pixels(), name or "mask"), name or "mask"


def _from_array(array: np.ndarray, geometry: Geometry, name: str) -> Raster:
    if geometry.is_physical and array.ndim == 3 and 1 in array.shape:
        from unimed.io.images import radiological_slice

        array = radiological_slice(array, geometry, None, name)[0]
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[..., 0] if array.shape[-1] == 1 else array[0]
    alpha = None
    if array.ndim == 3 and array.shape[-1] == 4:
        most = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
        array, alpha = array[..., :3], (array[..., 3] / most).astype(np.float32)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise MaskError(f"{name}: shape {array.shape} is no mask of an image")
    return Raster(array, "array", None, alpha)


def _lossy_kind(raster: Raster) -> str:
    return "lossy WebP" if raster.form == "WEBP" else raster.form


def _inside(raster: Raster, label, name: str) -> tuple[np.ndarray, list[str]]:
    values = raster.values
    remarks: list[str] = []
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise MaskError(f"{name}: the mask holds NaN or Inf")
    opaque = np.ones(values.shape[:2], bool) if raster.alpha is None else raster.alpha > 0
    if label is not None:
        return _labeled(raster, label, name) & opaque, remarks
    if raster.palette is not None:
        used = np.unique(values[opaque]) if opaque.any() else np.zeros(0, int)
        black = used[(raster.palette[used] == 0).all(1)]
        if len(black) and 0 not in black and 0 in used:
            # Some other entry is the black background; by index the picture would be read inside out.
            remarks.append("palette entry 0 is not black; read by colour")
            return (raster.palette[values] > 0).any(2) & opaque, remarks
        mask = (values > 0) & opaque
        labels = used[used > 0]
        if len(labels) > 1:
            remarks.append(_several(labels, "palette entries"))
        return mask, remarks
    if values.ndim == 3:
        mask = (values > 0).any(2) & opaque
        if raster.lossy:
            mask = (values.max(2).astype(np.int64) * 2 > max(int(values.max()), 1)) & opaque
            remarks.append(f"a {_lossy_kind(raster)}: cut at half of the largest value; save masks as PNG")
        elif mask.any():
            colors = np.unique(values[mask].reshape(-1, 3), axis=0)
            if len(colors) > 1:
                remarks.append(f"{len(colors)} colours; all of them count as the mask")
        elif raster.alpha is not None:
            # Drawn in the opacity alone.
            remarks.append("black everywhere; its opacity is taken as the mask")
            return raster.alpha > 0.5, remarks
        return mask, remarks
    if values.dtype == np.bool_:
        return values & opaque, remarks
    if raster.lossy:
        remarks.append(f"a {_lossy_kind(raster)}: cut at half of the largest value; save masks as PNG")
        return (values.astype(np.int64) * 2 > max(int(values.max(initial=0)), 1)) & opaque, remarks
    if values.dtype.kind == "f":
        if values.size and 0 <= values.min() and values.max() <= 1 and (values != np.rint(values)).any():
            remarks.append("fractions; cut at one half")
            return (values > 0.5) & opaque, remarks
        return (values > 0) & opaque, remarks
    mask = (values > 0) & opaque
    if not mask.any() and raster.alpha is not None and not (values > 0).any():
        remarks.append("black everywhere; its opacity is taken as the mask")
        return raster.alpha > 0.5, remarks
    labels = np.unique(values[mask])
    if len(labels) > 1:
        soft = len(labels) > 16 and labels[-1] == 255
        what = f"{len(labels)} grey values up to 255, a soft or resized edge; " if soft else ""
        remarks.append(what + "every value above 0 counts" if soft else _several(labels, "labels"))
    return mask, remarks


def _several(labels, what: str) -> str:
    shown = ", ".join(str(int(v)) for v in labels[:6]) + (", ..." if len(labels) > 6 else "")
    return f"{len(labels)} {what} ({shown}); all of them count as the mask"


def _labeled(raster: Raster, label, name: str) -> np.ndarray:
    values = raster.values
    if isinstance(label, Sequence) and not isinstance(label, str):
        colors = raster.palette[values] if raster.palette is not None else values
        if colors.ndim != 3 or len(label) != 3:
            raise MaskError(f"{name}: label {tuple(label)} is a colour, the file holds grey values; give a number")
        return (colors == np.asarray(label)).all(2)
    if values.ndim == 3:
        if (values[..., 0] != values[..., 1]).any() or (values[..., 0] != values[..., 2]).any():
            raise MaskError(f"{name}: label {label} of a color image; give (red, green, blue)")
        values = values[..., 0]
    return values == label


def _with_image(mask: np.ndarray, raster: Raster, image: Image, name: str) -> tuple[np.ndarray, list[str]]:
    """A mask beside a picture that its EXIF orientation turned."""
    turn, size = image.source.orientation, image.rgb.shape[:2]
    if turn == 1 or raster.orientation == turn:
        return mask, []
    if raster.orientation != 1:
        raise MaskError(
            f"{name}: EXIF orientation {raster.orientation}, its image has {turn}; save both upright without EXIF"
        )
    if not keeps_shape(turn) and size[0] != size[1]:
        if mask.shape == size[::-1]:
            return np.ascontiguousarray(turned(mask, turn)), [f"turned with its image (EXIF orientation {turn})"]
        return mask, []  # drawn on the upright image; another size is told where sizes are compared
    raise MaskError(
        f"{name}: its image has EXIF orientation {turn} and the mask has none: it may have been drawn before or after "
        "that turn; save the image upright without EXIF"
    )


def _fitted(mask: np.ndarray, shape: tuple[int, int], resize: bool, name: str) -> np.ndarray:
    if not resize:
        raise MaskError(
            f"mask {name} is {mask.shape}, its image {shape}; repair it, or set resize_masks=True where a reader has it"
        )
    from PIL import Image as Pillow

    image = Pillow.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1], Pillow.Resampling.NEAREST)
    return np.asarray(image) > 0


def _suspicions(mask: np.ndarray) -> list[str]:
    if mask.size == 0 or min(mask.shape) < 4:
        return []
    if mask.all():
        return ["every pixel is set; is that meant?"]
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if border.mean() > _MOST_OF_BORDER and mask.mean() > _MOST_OF_AREA:
        return [f"{mask.mean():.0%} of the pixels and the border are set; it may be inverted"]
    return []

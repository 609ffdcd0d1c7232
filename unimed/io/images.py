"""Whatever a user calls an image, as 8-bit RGB with its geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, axis_assignment, reorient
from unimed.io.read import ReadError, read
from unimed.io.windows import ct_to_uint8, percentiles_to_uint8


class ImageError(ValueError):
    """An image no model can read: empty, not finite, or of a shape that is no image."""


@dataclass(frozen=True, eq=False)
class ImageInput:
    """`rgb` is HxWx3 uint8; `geometry` belongs to the source."""

    rgb: np.ndarray
    geometry: Geometry
    name: str = ""


def read_image(image, site: str = "") -> ImageInput:
    """A path, PIL image or array as 8-bit RGB.

    8-bit values are taken as they are; anything deeper is windowed: by the CT window of `site` where one is given,
    otherwise by percentiles.

    Raises:
        ImageError: a volume (use `predict_volume`), no pixels, NaN or Inf, or an unknown type.
        ReadError: the file cannot be read.
    """
    geometry, name = Geometry.pixels(), ""
    if isinstance(image, ImageInput):
        return image
    if isinstance(image, (str, Path)):
        name = str(image)
        array, geometry = read(image)
        if geometry.is_physical and array.ndim == 3:
            array, geometry = as_displayed(array, geometry, name)
    elif isinstance(image, np.ndarray):
        array = image
    elif hasattr(image, "convert"):
        array = np.array(image.convert("RGB"))
    else:
        raise ImageError(f"an image is a path, a PIL image or an array, not {type(image).__name__}")
    return ImageInput(to_rgb(array, site, name), geometry, name)


def as_displayed(array: np.ndarray, geometry: Geometry, name: str = "array") -> tuple[np.ndarray, Geometry]:
    """One slice of a volume format, its axes in any order, as (rows, columns, 1) the way a radiologist sees it.

    Rows run to the patient's back (to the feet in coronal and sagittal slices), columns to the left (to the back in
    sagittal slices). The geometry belongs to the array that is returned.

    Raises:
        ImageError: more than one slice.
    """
    if 1 not in array.shape:
        raise ImageError(
            f"{name}: shape {array.shape} is a volume; use unimed.inference.volume.predict_volume or give a slice"
        )
    thin = len(array.shape) - 1 - array.shape[::-1].index(1)
    orientation = ("IPL", "ILP", "PLS")[axis_assignment(geometry.affine)[thin][0]]
    array, geometry = reorient(array, geometry, orientation)
    return np.ascontiguousarray(array), geometry


def to_rgb(array: np.ndarray, site: str = "", name: str = "array") -> np.ndarray:
    """HxW, HxWx3, HxWx4, 1xHxW or HxWx1 of any number type -> HxWx3 uint8.

    Raises:
        ImageError: see `read_image`.
    """
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        squeezed = np.squeeze(array)
        if squeezed.ndim != 2:
            raise ImageError(
                f"{name or 'array'}: shape {array.shape} is a volume; "
                "use unimed.inference.predict_volume or give a slice"
            )
        array = squeezed
    if array.ndim == 3:
        array = array[..., 0] if array.shape[-1] == 1 else array[..., :3]
    if array.ndim != 2 and array.ndim != 3:
        raise ImageError(f"{name or 'array'}: shape {array.shape} is no image")
    if array.size == 0:
        raise ImageError(f"{name or 'array'}: the image has no pixels")
    if not np.isfinite(array).all():
        raise ImageError(f"{name or 'array'}: the image holds NaN or Inf")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        array = ct_to_uint8(array, site) if site else percentiles_to_uint8(array)
    return np.ascontiguousarray(np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array)


__all__ = ["ImageError", "ImageInput", "ReadError", "read_image", "to_rgb"]

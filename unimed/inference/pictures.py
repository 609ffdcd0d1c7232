"""Pictures for BiomedParse: grey values of single slices, and the published v1 preparation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unimed.geometry import Geometry
from unimed.inference.intensity import IntensityError, choose_intensity
from unimed.io.read import ReadError, read
from unimed.io.slices import to_view
from unimed.io.windows import modality_of

#: Lower and upper Hounsfield value by site, as v1 was trained.
V1_WINDOWS_HU = {
    "abdomen": (-150, 250),
    "lung": (-1000, 1000),
    "pelvis": (-55, 200),
    "liver": (-25, 230),
    "colon": (-68, 187),
    "pancreas": (-100, 200),
}


def read_picture(path: str | Path, modality: str = "", site: str = "") -> tuple[np.ndarray, Geometry]:
    """A picture or a single slice as uint8 HxW or HxWx3, slices turned to how they are looked at.

    8-bit values stay; anything deeper goes by the CT window of `site` or by percentiles.

    Raises:
        ReadError: several slices, or no picture. IntensityError: unknown site.
    """
    array, geometry = read(path)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[-1] != 3:
        if 1 not in array.shape:
            raise ReadError(f"{path}: a volume {array.shape}; use demo_parse3D.py, or give one slice")
        array, geometry = _one_slice(array, geometry)
    elif array.ndim not in (2, 3):
        raise ReadError(f"{path}: {array.ndim}D data {array.shape} is no picture")
    if array.dtype != np.uint8:
        modality = modality or str(geometry.header.get("modality", ""))
        array = choose_intensity(array, geometry, modality=modality, site=site)(array)
    return array, geometry


def _one_slice(array, geometry):
    """(I, J, K) with one slice to (rows, columns); the axis of one voxel is the one that is cut along."""
    from unimed.geometry import axis_assignment
    from unimed.io.slices import VIEWS

    axis = array.shape.index(1)
    if geometry.is_physical and not geometry.header.get("orientation_assumed"):
        view = tuple(VIEWS)[axis_assignment(geometry.affine)[axis][0]]
        array, geometry, axis = to_view(array, geometry, view)
    return np.ascontiguousarray(np.take(array, 0, axis=axis)), geometry


def v1_picture(
    array: np.ndarray, modality: str = "", site: str = "", size: int = 1024, compat: str | None = None
) -> np.ndarray:
    """A slice or colour picture as v1's data were made: grey values, zero padding to a square, cubic resize.

    Args:
        array: HxW of any numbers, or HxWx3 / HxWx4 uint8. modality: CT goes by the window of `site`, all else by the
            percentiles 0.5 and 99.5 of what is above zero; colour keeps its values.
        compat: None: a window maps to 0..255 as it is. "reference": the clipped slice is stretched to its own range,
            an odd difference of sides leaves one pixel, and values are cut instead of rounded.

    Returns:
        uint8 [size, size, 3].

    Raises:
        IntensityError: CT without a known site.
    """
    from skimage.transform import resize

    colour = array.ndim == 3
    if colour:
        grey = array[..., :3].astype(np.float64)
    elif modality_of(modality) == "CT":
        if site not in V1_WINDOWS_HU:
            raise IntensityError(f"CT needs a site for its window, got {site!r}; known are {', '.join(V1_WINDOWS_HU)}")
        low, high = V1_WINDOWS_HU[site]
        grey = np.clip(array.astype(np.float64), low, high)
        grey = grey if compat == "reference" else (grey - low) / (high - low) * 255
    else:
        positive = array[array > 0]
        low, high = np.percentile(positive, (0.5, 99.5)) if positive.size else (0.0, 0.0)
        grey = np.clip(array.astype(np.float64), low, high)
        grey = grey if compat == "reference" else (grey - low) / max(high - low, 1e-12) * 255
    if not colour and compat == "reference":
        grey = (grey - grey.min()) / max(grey.max() - grey.min(), 1e-12) * 255
    rows, columns = array.shape[:2]
    side = max(rows, columns)
    before = ((side - rows) // 2, (side - columns) // 2)
    after = before if compat == "reference" else (side - rows - before[0], side - columns - before[1])
    channels = np.moveaxis(grey, 2, 0) if colour else grey[None]
    # One channel at a time: overshoot is clipped to the range of each.
    resized = np.stack(
        [
            resize(np.pad(c, list(zip(before, after, strict=True))), (size, size), order=3, mode="constant",
                   preserve_range=True, anti_aliasing=True)
            for c in channels
        ],
        axis=-1,
    )  # fmt: skip
    resized = np.clip(resized if compat == "reference" else np.rint(resized), 0, 255).astype(np.uint8)
    return resized if colour else np.repeat(resized, 3, axis=2)

"""Pictures of results for a person: grey values as they are usually seen, and the slices that show most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.geometry import Geometry, reorient
from unimed.io.dicom_source import DicomSegError, source_of_result
from unimed.io.findings import Finding
from unimed.io.windows import to_uint8


def gray_values(prediction, image: np.ndarray | None = None, deidentified: bool = False) -> np.ndarray | None:
    """uint8 of the image in the grid of the masks: `image` where it is given, else the DICOM source read again.

    Args:
        image: uint8 HxW or HxWx3 as it is seen, or values in the shape of the masks, which are windowed.

    Raises:
        ValueError: an image of another shape than the masks.
    """
    shape = next((region.mask.shape for region in prediction.regions if region.mask is not None), None)
    if image is not None:
        seen = image if image.dtype == np.uint8 else to_uint8(image, prediction.geometry)
        if shape is not None and seen.shape[: len(shape)] != shape:
            raise ValueError(f"image {image.shape} does not fit the masks {shape}")
        return seen
    try:
        source = source_of_result(prediction.geometry, "views", deidentified)
    except DicomSegError:
        return None
    values = source.values_in_grid(prediction) if shape is not None else _first_slice(source)
    return None if values is None else to_uint8(values, prediction.geometry)


def _first_slice(source) -> np.ndarray | None:
    values = source.values()
    return values[..., 0].T if values.shape[2] == 1 else values


def upright(array: np.ndarray, geometry: Geometry | None) -> tuple[np.ndarray, Geometry]:
    """A map as (columns, rows, slices) the way radiologists look at it: axes to the left, the back and the head.

    Maps of two axes are rows and columns of a picture; oblique volumes are turned to the nearest axes.
    """
    geometry = geometry or Geometry.pixels()
    if array.ndim == 2:
        return array.T[..., None], Geometry.pixels()
    if not geometry.is_physical:
        return array, geometry
    return reorient(array, geometry, "LPS")


def key_slices(findings: Sequence[Finding], geometry: Geometry | None, most: int = 4) -> list[int]:
    """Slices of the upright volume that show each finding best: those with most of its pixels, at most `most`."""
    chosen = []
    for finding in findings:
        if finding.is_drawn:
            mask, _ = upright(finding.region.mask, geometry)
            k = int(mask.sum((0, 1)).argmax())
            if k not in chosen:
                chosen.append(k)
    return sorted(chosen[:most])

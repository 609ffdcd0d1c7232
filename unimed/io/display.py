"""A slice as a person would look at it: rows downwards, 8 bit, windowed, dark where the file means dark."""

from __future__ import annotations

import numpy as np

from unimed.geometry import Geometry, reorient
from unimed.io.windows import ct_to_uint8, percentiles_to_uint8, window_to_uint8


def display(array: np.ndarray, geometry: Geometry, site: str = "") -> np.ndarray:
    """An array as `unimed.io.read` gave it -> HxW or HxWx3 uint8.

    8-bit values stay. Anything deeper is windowed: by the CT window of `site`, else by the window written in the DICOM
    file, else by percentiles. Slices of physical images are turned as radiologists see them (the patient's left at the
    right, front or head up); MONOCHROME1 is inverted.

    Raises:
        ValueError: a volume of several slices, or an unknown site.
    """
    if geometry.is_physical and array.ndim == 3:
        if 1 not in array.shape:
            raise ValueError(f"shape {array.shape} is a volume; give one slice of it")
        if geometry.source_format == "dicom":
            array = array[..., 0].T  # the reader puts columns first; the file's own rows are the picture's
        else:
            array, _ = reorient(array, geometry, "LPI")
            array = np.squeeze(array, axis=array.shape.index(1)).T
    if array.dtype != np.uint8:
        window = geometry.header.get("window")
        if site:
            array = ct_to_uint8(array, site)
        elif window:
            array = window_to_uint8(array, *window)
        else:
            array = percentiles_to_uint8(array)
    if geometry.header.get("photometric") == "MONOCHROME1":
        array = 255 - array
    return np.ascontiguousarray(array)

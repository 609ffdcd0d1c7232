"""The eight ways in which a picture may lie, numbered as the EXIF orientation is (1: as stored)."""

from __future__ import annotations

import numpy as np

#: Orientation that undoes another; only the two quarter turns differ.
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
WORDS = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored along the main diagonal",
    6: "turned by 90 degrees clockwise",
    7: "mirrored along the other diagonal",
    8: "turned by 90 degrees counter-clockwise",
}


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Stored (rows, columns, ...) as it is to be shown, a view; `orientation` 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def turned_back(array: np.ndarray, orientation: int) -> np.ndarray:
    """Shown (rows, columns, ...) as it was stored, a view."""
    return turned(array, INVERSE[orientation])


def keeps_shape(orientation: int) -> bool:
    """Whether rows stay rows."""
    return orientation <= 4

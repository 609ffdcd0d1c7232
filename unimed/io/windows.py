"""Grey values to 8 bit: CT windows by site, percentiles for everything whose unit means nothing."""

from __future__ import annotations

import re

import numpy as np

#: (level, width) in Hounsfield units, the values radiology departments use for reading.
CT_WINDOWS_HU = {
    "abdomen": (40, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
    "chest": (-600, 1500),
    "liver": (30, 150),
    "lung": (-600, 1500),
    "mediastinum": (40, 400),
    "pelvis": (40, 400),
}


def window_to_uint8(array: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map [level - width/2, level + width/2] linearly to 0..255 and clip what lies outside.

    Raises:
        ValueError: `width` is not positive.
    """
    if width <= 0:
        raise ValueError(f"window width must be positive, got {width}")
    low = level - width / 2
    scaled = (array.astype(np.float32) - np.float32(low)) * np.float32(255.0 / width)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def ct_to_uint8(array_hu: np.ndarray, site: str) -> np.ndarray:
    """CT in Hounsfield units to 0..255 by the window of `site`.

    Raises:
        ValueError: unknown site; the message lists the known ones.
    """
    if site not in CT_WINDOWS_HU:
        raise ValueError(f"no CT window for site {site!r}; known are {', '.join(sorted(CT_WINDOWS_HU))}")
    return window_to_uint8(array_hu, *CT_WINDOWS_HU[site])


def percentiles_to_uint8(
    array: np.ndarray, low: float = 0.5, high: float = 99.5, ignore_zero: bool = True
) -> np.ndarray:
    """Map the `low` and `high` percentiles to 0 and 255 and clip what lies outside.

    `ignore_zero` leaves exact zeros out of the percentiles: in MR and ultrasound they are empty border whose share
    would otherwise decide the contrast. An array of one value becomes all 0.

    Raises:
        ValueError: percentiles out of order or outside [0, 100].
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {low} and {high}")
    values = array[array != 0] if ignore_zero else array.ravel()
    if values.size == 0:
        return np.zeros(array.shape, dtype=np.uint8)
    minimum, maximum = np.percentile(values, (low, high))
    if maximum <= minimum:
        minimum, maximum = float(array.min()), float(array.max())
    if maximum <= minimum:
        return np.zeros(array.shape, dtype=np.uint8)
    return window_to_uint8(array, (minimum + maximum) / 2, maximum - minimum)


#: Beginnings of modality names, as DICOM, file names of the challenge and people write them.
MODALITIES = (
    ("CT", r"ct\b|ct_|computed"),
    ("MR", r"mr(i\b|i_|i-|\b|_)|magnetic"),
    ("US", r"us\b|us_|ultrasound|echo"),
    ("PET", r"pet|pt\b|pt_"),
    ("Microscopy", r"micro|em\b|em_|electron|lightsheet"),
    ("X-ray", r"x-?ray|cr\b|dx\b"),
)


def modality_of(text: str) -> str:
    """ "CT", "MR", "US", "PET", "Microscopy" or "X-ray" by how `text` begins; "" if it does not say."""
    for name, pattern in MODALITIES:
        if re.match(pattern, text.strip().lower()):
            return name
    return ""

"""Grey values to 8 bit: one rule that chooses the window, for a picture as for all slices of a volume, and says which.

The order is: what the caller gives (`window`, `percentiles`), what the file says of itself, the site and modality,
the percentiles of the values. Published weights that were trained with other windows carry their own table in the
configuration of the model; `CT_WINDOWS_HU` is for all else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unimed.geometry import Geometry
from unimed.io.errors import WindowError

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
    "soft tissue": (40, 400),
}
#: What CT of an unknown site is shown with.
DEFAULT_SITE = "soft tissue"
PERCENTILES = (0.5, 99.5)
#: Percentiles of floating-point values are taken from about this many.
MOST_VALUES = 2**25


@dataclass(frozen=True)
class Window:
    """A map of grey values to 0..255: `low` becomes 0, `high` 255. Without them values stay as they are.

    `rule` says where the window comes from. `table` (first value, bits, entries) maps by a table of the file instead.
    `inverted`: the file shows its smallest value white (MONOCHROME1).
    `remark` is what a user should know of the choice.
    """

    rule: str
    low: float | None = None
    high: float | None = None
    inverted: bool = False
    remark: str = ""
    table: tuple[int, int, tuple[int, ...]] | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """uint8 of the same shape (or `values` themselves where nothing is to be done)."""
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * 255
        elif self.table is not None:
            first, bits, entries = self.table
            gray = np.rint(np.array(entries, dtype=np.float64) * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
            values = gray[np.clip(np.rint(values).astype(np.int64) - first, 0, len(gray) - 1)]
        elif self.low is not None and self.high is not None:
            if self.high <= self.low:
                return np.zeros(values.shape, np.uint8)
            values = window_to_uint8(values, (self.low + self.high) / 2, self.high - self.low)
        return 255 - values if self.inverted else values

    def __str__(self) -> str:
        text = self.rule if self.low is None else f"{self.rule} [{self.low:g}, {self.high:g}]"
        return text + ", inverted" * self.inverted

    @property
    def steps(self) -> tuple[str, ...]:
        """What it does, in words; nothing where values stay as they are."""
        steps = [self.rule] if self.table is not None else []
        steps += [] if self.low is None else [f"{self.rule} [{self.low:g}, {self.high:g}]"]
        steps += ["inverted (MONOCHROME1: the smallest value is white)"] * self.inverted
        return (*steps, *([self.remark] if self.remark else []))


def choose_window(
    array: np.ndarray,
    geometry: Geometry | None = None,
    *,
    window: tuple[float, float] | str | None = None,
    percentiles: tuple[float, float] | None = None,
    site: str = "",
    modality: str = "",
    windows: Mapping[str, tuple[float, float]] | None = None,
    ignore_zero: bool | None = None,
) -> Window:
    """The window of a picture or of a whole volume.

    In this order: `window`; `percentiles`; nothing for arrays that are 0..255 already (uint8, bool); the window in the
    file; for CT the window of `site`, soft tissue where none is given; else the percentiles 0.5 and 99.5. A site with
    an unknown modality counts as CT in Hounsfield units.

    Args:
        array: all values that are to be seen alike.
        geometry: its header may hold `window` (level, width, ...), `voi_lut`, `modality` and `photometric` of the file.
        window: (level, width), or the name of one in the table.
        modality: in any wording, see `modality_of`; by default what the file says.
        windows: table of CT windows, site -> (level, width) in HU; `CT_WINDOWS_HU` by default.
        ignore_zero: leave exact zeros out of percentiles: in MR and ultrasound they are empty border whose share would
            otherwise decide the contrast. By default for all but files with inverted grey values.

    Raises:
        WindowError: no numbers, NaN or Inf, an unknown site, a window without width, percentiles out of order.
    """
    header = geometry.header if geometry is not None else {}
    table = CT_WINDOWS_HU if windows is None else windows
    inverted = str(header.get("photometric", "")).strip() == "MONOCHROME1"
    ignore_zero = not inverted if ignore_zero is None else ignore_zero
    if array.dtype.kind not in "iufb":
        raise WindowError(f"grey values must be numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in array):
        raise WindowError("the values hold NaN or Inf; replace them before use")
    site = str(site or "").strip().lower()
    if window is not None:
        return _asked(window, table, inverted)
    if percentiles is not None:
        low, high = percentile_range(array, *percentiles, ignore_zero)
        return Window("percentiles {:g} and {:g}".format(*percentiles), low, high, inverted)
    if header.get("voi_lut") and array.dtype != np.bool_:
        return Window("table of the file (VOI LUT)", inverted=inverted, table=header["voi_lut"])
    if array.dtype in (np.uint8, np.bool_):
        return Window("as stored (0 to 255)", inverted=inverted)
    if header.get("window"):
        level, width = (float(value) for value in tuple(header["window"])[:2])
        if np.isfinite((level, width)).all() and width > 0:
            return _of(f"window of the file {level:g}/{width:g}", level, width, inverted)
    kind = modality_of(modality) or modality_of(str(header.get("modality", "")))
    is_image_file = geometry is not None and geometry.source_format == "image"
    if (kind == "CT" and not (is_image_file and not site)) or (site and not kind):
        name = site or DEFAULT_SITE
        if site and site not in table:
            raise WindowError(f"no CT window for site {site!r}; known are {', '.join(sorted(table))}")
        remark = "" if site else "the site is not known; choose the window with site or window"
        level, width = table.get(name, CT_WINDOWS_HU[DEFAULT_SITE])
        return _of(f"CT window {name}", level, width, inverted, remark)
    remark = ""
    if not kind and looks_like_ct(array):
        remark = "the values look like CT but no modality is known; give modality CT, a site or a window"
    low, high = percentile_range(array, *PERCENTILES, ignore_zero)
    return Window("percentiles {:g} and {:g}".format(*PERCENTILES), low, high, inverted, remark)


def _asked(window, table, inverted: bool) -> Window:
    if isinstance(window, str):
        name = window.strip().lower()
        if name not in table:
            raise WindowError(f"no CT window is called {window!r}; known are {', '.join(sorted(table))}")
        level, width = table[name]
        return _of(f"window {name}", level, width, inverted)
    level, width = (float(value) for value in tuple(window)[:2])
    if not np.isfinite((level, width)).all() or width <= 0:
        raise WindowError(f"window width must be positive, got {width:g}")
    return _of("window", level, width, inverted)


def _of(rule: str, level: float, width: float, inverted: bool, remark: str = "") -> Window:
    return Window(rule, level - width / 2, level + width / 2, inverted, remark)


def looks_like_ct(array: np.ndarray) -> bool:
    """Whether values run like Hounsfield units: air far below zero, soft tissue and bone above."""
    if array.size == 0 or array.dtype.kind not in "if":
        return False
    low, high = float(array.min()), float(array.max())
    return -5000 <= low <= -900 and 100 <= high <= 40000


def to_uint8(array: np.ndarray, geometry: Geometry | None = None, **options) -> np.ndarray:
    """Grey values of a picture or of a whole volume as 0..255; options as of `choose_window`."""
    return choose_window(array, geometry, **options)(array)


def check_site(site: str, windows: Mapping | None = None) -> None:
    """Refuse a site that a caller typed and no table knows, whether or not it will be needed.

    Raises:
        WindowError: it is not in the table.
    """
    table = CT_WINDOWS_HU if windows is None else windows
    if site and str(site).strip().lower() not in table:
        raise WindowError(f"no CT window for site {site!r}; known are {', '.join(sorted(table))}")


def known_site(site: str, modality: str, windows: Mapping | None = None) -> str:
    """The site a record names, where it chooses a CT window; "" for every other record."""
    site = str(site or "").strip().lower()
    table = CT_WINDOWS_HU if windows is None else windows
    return site if site in table and modality_of(modality) == "CT" else ""


def color_to_uint8(array: np.ndarray) -> tuple[np.ndarray, str]:
    """HxWx3 of any number type to uint8 without a change of hue, and what was done in words ("" for nothing).

    Integers are scaled by the fewest of 8, 10, 12, 14 or 16 bits that hold them; floats in 0..1 or 0..255 are scaled
    from there, others go by common percentiles of the three channels.
    """
    if array.dtype == np.uint8:
        return array, ""
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind in "iu" and low >= 0:
        bits = next((bits for bits in (8, 10, 12, 14, 16, 32, 64) if high < 2**bits), 64)
        if bits == 8:
            return array.astype(np.uint8), ""
        return np.rint(array * (255 / (2**bits - 1))).astype(np.uint8), f"{bits} bit colour scaled to 8 bit"
    if array.dtype.kind == "f" and low >= 0 and high <= 255:
        scale, value_range = (255, "0 to 1") if high <= 1 else (1, "0 to 255")
        return np.rint(array * scale).astype(np.uint8), f"colour of {value_range} scaled to 8 bit"
    low, high = percentile_range(array, *PERCENTILES, False)
    window = Window("percentiles {:g} and {:g} of all channels".format(*PERCENTILES), low, high)
    return window(array), str(window)


def window_to_uint8(array: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map [level - width/2, level + width/2] linearly to 0..255 and clip what lies outside.

    Raises:
        WindowError: `width` is not positive.
    """
    if width <= 0:
        raise WindowError(f"window width must be positive, got {width}")
    low = level - width / 2
    scaled = (array.astype(np.float32) - np.float32(low)) * np.float32(255.0 / width)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def percentile_range(array: np.ndarray, low: float, high: float, ignore_zero: bool = True) -> tuple[float, float]:
    """numpy's linear percentiles of the values; those of an array of one value are that value twice.

    Integers are counted, so that no copy of a volume is made; of very many floats an even selection is taken.

    Raises:
        WindowError: percentiles out of order or outside [0, 100].
    """
    if not 0 <= low < high <= 100:
        raise WindowError(f"percentiles must satisfy 0 <= low < high <= 100, got {low} and {high}")
    if array.size == 0:
        return 0.0, 0.0
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    smallest, largest = array.min(), array.max()
    if array.dtype.kind == "f" or int(largest) - int(smallest) > 2**20:
        step = max(1, int(np.ceil((array.size / MOST_VALUES) ** (1 / array.ndim))))
        values = array[(slice(None, None, step),) * array.ndim].ravel()
        values = values[values != 0] if ignore_zero else values
        found = np.percentile(values, (low, high)) if values.size else (0.0, 0.0)
    else:
        offset = int(smallest)
        counts = np.zeros(int(largest) - offset + 1, dtype=np.int64)
        for plane in array if array.ndim > 1 else array[None]:
            counts += np.bincount((plane.astype(np.int64) - offset).ravel(), minlength=len(counts))
        if ignore_zero and 0 <= -offset < len(counts):
            counts[-offset] = 0
        found = [_counted(counts, offset, part / 100) for part in (low, high)] if counts.sum() else (0.0, 0.0)
    if found[1] <= found[0]:
        found = (smallest, largest)
    return float(found[0]), float(found[1])


def _counted(counts: np.ndarray, offset: int, part: float) -> float:
    below = np.cumsum(counts)
    place = part * (below[-1] - 1)
    left, right = (int(np.searchsorted(below, index + 1)) for index in (np.floor(place), np.ceil(place)))
    return offset + left + (right - left) * (place - np.floor(place))


#: Beginnings of modality names, as DICOM, file names of the challenge and people write them.
MODALITIES = (
    ("CT", r"ct\b|ct_|computed"),
    ("MR", r"mr(i\b|i_|i-|\b|_)|magnetic"),
    ("US", r"us\b|us_|ultrasound|echo"),
    ("PET", r"pet|pt\b|pt_"),
    ("Microscopy", r"micro|em\b|em_|electron|lightsheet"),
    ("X-ray", r"x-?ray|cr\b|dx\b"),
)


#: Beginnings of the names of further kinds of images; their values need no rule of their own.
_OTHER_MODALITIES = (
    "angio", "arthro", "bone", "colono", "color", "cysto", "cyto", "dermo", "drawing", "endo", "fluor", "fundus",
    "gastro", "gm", "hist", "laparo", "mammo", "mg", "nm", "nuclear", "oct", "op", "ophthalmo", "optical", "ot", "path",
    "photo", "radiog", "retina", "rf", "sc", "scint", "slide", "sm", "spect", "thermo", "video", "wsi", "xa", "xc",
)  # fmt: skip


def unknown_modality(text: str) -> str:
    """What to tell somebody who typed a modality that nothing here knows; "" for those that are known, and for none."""
    word = text.strip().lower()
    if not word or modality_of(word) or word.startswith(_OTHER_MODALITIES):
        return ""
    names = [name for name, _ in MODALITIES]
    return (
        f"modality {text!r} is not known and chooses no grey values; "
        f"known are {', '.join(names)}, and pathology, fundus, dermoscopy, endoscopy, OCT, ..."
    )


def modality_of(text: str) -> str:
    """ "CT", "MR", "US", "PET", "Microscopy" or "X-ray" by how `text` begins; "" if it does not say."""
    for name, pattern in MODALITIES:
        if re.match(pattern, text.strip().lower()):
            return name
    return ""

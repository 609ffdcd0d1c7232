"""Which grey values a volume is shown to BiomedParse with: CT by the window of the site, others by percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimed.data.wordings.biomedparse_targets import site_of
from unimed.geometry import Geometry
from unimed.io.windows import modality_of, window_to_uint8

#: (level, width) in Hounsfield units that the v2 weights were trained with.
WINDOWS_HU = {"soft tissue": (40, 400), "lung": (-160, 1500), "brain": (40, 80), "bone": (400, 1800)}
SITES = {
    **dict.fromkeys(("abdomen", "pelvis", "liver", "kidney", "pancreas", "colon", "heart", "neck"), "soft tissue"),
    **dict.fromkeys(("chest", "thorax", "thoracic", "lung"), "lung"),
    **dict.fromkeys(("head", "skull base", "brain"), "brain"),
    **dict.fromkeys(("spine", "skeleton", "msk", "bone"), "bone"),
    "soft tissue": "soft tissue",
}
PERCENTILES = (0.5, 99.5)


class IntensityError(ValueError):
    """Grey values that cannot be brought to 0..255 as asked; the message says what to give."""


@dataclass(frozen=True)
class Intensity:
    """A map of grey values to 0..255: `low` becomes 0, `high` 255. Without them values stay as they are."""

    rule: str
    low: float | None = None
    high: float | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """uint8 of the same shape (or `values` themselves where nothing is to be done)."""
        if self.low is None or self.high is None:
            return values
        if self.high <= self.low:
            return np.zeros(values.shape, np.uint8)
        return window_to_uint8(values, (self.low + self.high) / 2, self.high - self.low)

    def __str__(self) -> str:
        return self.rule if self.low is None else f"{self.rule} [{self.low:g}, {self.high:g}]"


def choose_intensity(
    array: np.ndarray,
    geometry: Geometry | None = None,
    *,
    modality: str = "",
    site: str = "",
    prompts: Sequence[str] = (),
    window: tuple[float, float] | None = None,
    percentiles: tuple[float, float] | None = None,
    ignore_zero: bool = True,
) -> Intensity:
    """The recommended map, or the one that is asked for.

    In this order: `window` (level, width); `percentiles`; nothing for arrays that are 0..255 already (uint8); for CT
    the window of `site`, of the site the `prompts` agree on, or soft tissue; else percentiles 0.5 and 99.5.

    Args:
        array: the whole volume. geometry: its header may name a DICOM modality.
        modality: in any wording, see `modality_of`. site: one of `SITES`.
        ignore_zero: leave exact zeros out of percentiles; they are empty border in most formats.

    Raises:
        IntensityError: unknown site, a window without width, percentiles out of order, values that are not finite.
    """
    if array.dtype.kind not in "iufb":
        raise IntensityError(f"grey values must be numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in array):
        raise IntensityError("the volume holds NaN or Inf; replace them before use")
    if site and site.lower() not in SITES:
        raise IntensityError(f"unknown site {site!r}; known are {', '.join(SITES)}")
    if window is not None:
        if window[1] <= 0:
            raise IntensityError(f"window width must be positive, got {window[1]}")
        return _window("window", *window)
    if percentiles is not None:
        return Intensity("percentiles", *_percentiles(array, *percentiles, ignore_zero))
    if array.dtype == np.uint8:
        return Intensity("as stored (0 to 255)")
    kind = modality_of(modality) or modality_of(str((geometry.header if geometry else {}).get("modality", "")))
    if kind == "CT":
        name = SITES[site.lower()] if site else site_of(prompts) or "soft tissue"
        return _window(f"CT window {name}", *WINDOWS_HU[name])
    return Intensity("percentiles", *_percentiles(array, *PERCENTILES, ignore_zero))


def _window(rule: str, level: float, width: float) -> Intensity:
    return Intensity(rule, level - width / 2, level + width / 2)


def _percentiles(array: np.ndarray, low: float, high: float, ignore_zero: bool) -> tuple[float, float]:
    """As numpy's linear percentiles; integers are counted, so that no copy of the volume is made."""
    if not 0 <= low < high <= 100:
        raise IntensityError(f"percentiles must satisfy 0 <= low < high <= 100, got {low} and {high}")
    if array.dtype.kind == "f" or int(array.max()) - int(array.min()) > 2**20:
        values = array[array != 0] if ignore_zero else array.ravel()
        found = np.percentile(values, (low, high)) if values.size else (0.0, 0.0)
    else:
        offset = int(array.min())
        counts = np.zeros(int(array.max()) - offset + 1, dtype=np.int64)
        for plane in array:
            counts += np.bincount((plane.astype(np.int64) - offset).ravel(), minlength=len(counts))
        if ignore_zero and 0 <= -offset < len(counts):
            counts[-offset] = 0
        found = [_counted(counts, offset, share / 100) for share in (low, high)] if counts.sum() else (0.0, 0.0)
    if found[1] <= found[0]:
        found = (float(array.min()), float(array.max()))
    return float(found[0]), float(found[1])


def _counted(counts: np.ndarray, offset: int, share: float) -> float:
    below = np.cumsum(counts)
    place = share * (below[-1] - 1)
    left, right = (int(np.searchsorted(below, index + 1)) for index in (np.floor(place), np.ceil(place)))
    return offset + left + (right - left) * (place - np.floor(place))

"""The published preparation of BiomedParse v1: grey values by Hounsfield ranges, squares by cubic resizing."""

from __future__ import annotations

import numpy as np

from unimed.io.errors import WindowError
from unimed.io.windows import modality_of
from unimed.models.boltzformer.configuration import V1_WINDOWS_HU


def v1_image(
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
        WindowError: CT without a known site.
    """
    from skimage.transform import resize

    color = array.ndim == 3
    if color:
        gray = array[..., :3].astype(np.float64)
    elif modality_of(modality) == "CT":
        if site not in V1_WINDOWS_HU:
            raise WindowError(f"CT needs a site for its window, got {site!r}; known are {', '.join(V1_WINDOWS_HU)}")
        level, width = V1_WINDOWS_HU[site]
        low, high = level - width / 2, level + width / 2
        gray = np.clip(array.astype(np.float64), low, high)
        gray = gray if compat == "reference" else (gray - low) / (high - low) * 255
    else:
        positive = array[array > 0]
        low, high = np.percentile(positive, (0.5, 99.5)) if positive.size else (0.0, 0.0)
        gray = np.clip(array.astype(np.float64), low, high)
        gray = gray if compat == "reference" else (gray - low) / max(high - low, 1e-12) * 255
    if not color and compat == "reference":
        gray = (gray - gray.min()) / max(gray.max() - gray.min(), 1e-12) * 255
    rows, columns = array.shape[:2]
    side = max(rows, columns)
    before = ((side - rows) // 2, (side - columns) // 2)
    after = before if compat == "reference" else (side - rows - before[0], side - columns - before[1])
    channels = np.moveaxis(gray, 2, 0) if color else gray[None]
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
    return resized if color else np.repeat(resized, 3, axis=2)

"""A region shown by a green frame painted on the image, as UniBiomed trains and asks about regions."""

from __future__ import annotations

import random

import numpy as np

GREEN = (0, 255, 0)
#: Parts whose bounding box is smaller than this many pixels are framed only where there is no larger one.
LEAST_AREA_PX = 400


def draw_box(image: np.ndarray, mask: np.ndarray, draw: random.Random | None = None) -> np.ndarray:
    """Frame one connected part of a mask, three pixels wide.

    Args:
        image: HxW or HxWx3 uint8; not changed.
        mask: bool HxW.
        draw: chooses among the parts whose bounding box has more than `LEAST_AREA_PX` pixels, as published; without it
            the part of the largest bounding box is taken, so that the same question is asked every time.

    Returns:
        HxWx3 uint8.

    Raises:
        ValueError: the mask is empty or does not fit the image.
    """
    from scipy.ndimage import binary_dilation, find_objects, label

    if mask.shape != image.shape[:2] or not mask.any():
        raise ValueError(
            f"a region mask of {mask.shape} with {int(mask.sum())} pixels cannot be framed in {image.shape}"
        )
    parts = find_objects(label(mask, structure=np.ones((3, 3)))[0])

    def area(part) -> int:
        return (part[0].stop - part[0].start) * (part[1].stop - part[1].start)

    large = [part for part in parts if area(part) > LEAST_AREA_PX] or parts
    rows, columns = draw.choice(large) if draw is not None else max(large, key=area)
    # One pixel of margin on every side keeps the line where it would lie outside the image from folding back.
    height, width = mask.shape
    line = np.zeros((height + 4, width + 4), dtype=bool)
    top, bottom, left, right = rows.start + 1, rows.stop + 1, columns.start + 1, columns.stop + 1
    line[[top, bottom], left : right + 1] = True
    line[top : bottom + 1, [left, right]] = True
    line = binary_dilation(line)[1 : height + 1, 1 : width + 1]
    drawn = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    drawn[line] = GREEN
    return drawn

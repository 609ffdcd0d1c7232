"""How an image lies in the square a mask encoder sees, squashed or padded to it, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

#: squash: both sides become the square's, the aspect ratio is lost. pad: the longer side fits, the rest is empty.
MASK_FITS = ("squash", "pad")


@dataclass(frozen=True)
class Frame:
    """An image of `image_hw` pixels in a square of `side`, its content `content_hw` in the upper left corner.

    Normalised boxes are shares of `unit_px` (x, y): of width and height where the image is squashed, of the longer side
    where it is padded.
    """

    image_hw: tuple[int, int]
    side: int
    content_hw: tuple[int, int]
    unit_px: tuple[float, float]

    @property
    def scale(self) -> np.ndarray:
        """Factors (x, y, x, y) from image pixels to pixels of the square."""
        (height, width), (rows, columns) = self.image_hw, self.content_hw
        return np.array([columns / width, rows / height] * 2, dtype=np.float32)

    @property
    def box_unit_px(self) -> np.ndarray:
        """Factors (x, y, x, y) from normalised boxes to image pixels."""
        return np.array([*self.unit_px] * 2, dtype=np.float32)


def frame(size_hw: tuple[int, int], side: int, fit: str, content: int | None = None) -> Frame:
    """Where an image of `size_hw` goes.

    Args:
        fit: one of `MASK_FITS`.
        content: with "pad", the length the longer side gets; `side` by default. uMedGround gives 640 of 1024.
    """
    height, width = size_hw
    if fit == "squash":
        return Frame((height, width), side, (side, side), (float(width), float(height)))
    longest = max(height, width)
    scale = (content or side) / longest
    rows, columns = (max(1, int(length * scale + 0.5)) for length in (height, width))
    return Frame((height, width), side, (rows, columns), (float(longest), float(longest)))


def placed(image: np.ndarray, where: Frame, fit: str, mean, std) -> np.ndarray:
    """HxWx3 uint8 -> [3, S, S] float32, normalised; padding is zero after normalisation."""
    rows, columns = where.content_hw
    # Bilinear for padded images, as SAM resizes; bicubic for squashed ones, as SAM 2's users trained.
    method = Image.Resampling.BILINEAR if fit == "pad" else Image.Resampling.BICUBIC
    values = normalized_array(Image.fromarray(image).resize((columns, rows), method), mean, std)
    return np.pad(values, ((0, 0), (0, where.side - rows), (0, where.side - columns)))


def normalized_array(image: Image.Image, mean, std) -> np.ndarray:
    """Picture -> [3, H, W] float32: values in [0, 1] less mean, over std."""
    values = np.ascontiguousarray(np.array(image, dtype=np.float32).transpose(2, 0, 1)) / np.float32(255)
    mean, std = (np.asarray(one, dtype=np.float32)[:, None, None] for one in (mean, std))
    return (values - mean) / std


def resized(logits: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of [N, h, w] float32 to [N, H, W], corners not aligned, as torch's `interpolate` has it."""
    rows, columns = (_weights(old, new) for old, new in zip(logits.shape[-2:], size_hw, strict=True))
    return np.matmul(np.matmul(rows, logits), columns.T)


def _weights(old: int, new: int) -> np.ndarray:
    """[new, old] float32: how much each old place counts for each new one."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    high, part = np.minimum(low + 1, old - 1), (place - low).astype(np.float32)
    weights = np.zeros((new, old), dtype=np.float32)
    np.add.at(weights, (np.arange(new), low), 1 - part)
    np.add.at(weights, (np.arange(new), high), part)
    return weights

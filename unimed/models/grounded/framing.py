"""How an image lies in the square an encoder sees: squashed to it, padded to it, or with its middle alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

#: squash: both sides become the square's, the aspect ratio is lost. pad: the longer side fits, the rest is empty.
MASK_FITS = ("squash", "pad")
#: tiles: InternVL's dynamic tiles. crop: shorter side fits and the middle is cut out, as CLIP does: what lies outside
#: is not seen. pad: letterboxed on the mean colour.
TILE_FITS = ("tiles", "crop", "pad")


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


def place(image: np.ndarray, where: Frame, fit: str, mean, std) -> torch.Tensor:
    """HxWx3 uint8 -> [3, S, S] normalised; padding is zero after normalisation."""
    rows, columns = where.content_hw
    # Bilinear for padded images, as SAM resizes; bicubic for squashed ones, as SAM 2's users trained.
    method = Image.Resampling.BILINEAR if fit == "pad" else Image.Resampling.BICUBIC
    values = normalized(Image.fromarray(image).resize((columns, rows), method), mean, std)
    return torch.nn.functional.pad(values, (0, where.side - columns, 0, where.side - rows))


def one_tile(image: np.ndarray, side: int, fit: str, mean, std) -> torch.Tensor:
    """HxWx3 uint8 -> [1, 3, s, s] normalised, by "crop" or "pad"."""
    height, width = image.shape[:2]
    pil_image = Image.fromarray(image)
    if fit == "crop":
        shortest = min(height, width)
        size = tuple(side if length == shortest else int(side * length / shortest) for length in (width, height))
        pil_image = pil_image.resize(size, Image.Resampling.BICUBIC)
        left, top = (pil_image.width - side) // 2, (pil_image.height - side) // 2
        return normalized(pil_image.crop((left, top, left + side, top + side)), mean, std)[None]
    longest = max(height, width)
    size = tuple(max(1, round(side * length / longest)) for length in (width, height))
    canvas = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    canvas.paste(pil_image.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return normalized(canvas, mean, std)[None]


def normalized(pil_image: Image.Image, mean, std) -> torch.Tensor:
    """Picture -> [3, H, W] float32: values in [0, 1] less mean, over std."""
    values = torch.from_numpy(np.array(pil_image, dtype=np.float32)).permute(2, 0, 1) / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

"""How an image lies in the square an encoder sees: squashed to it, padded to it, or with its middle alone."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from unimed.io.squares import MASK_FITS, Frame, frame, normalized_array, placed

__all__ = ["MASK_FITS", "TILE_FITS", "Frame", "frame", "normalized", "one_tile", "place"]

#: tiles: InternVL's dynamic tiles. crop: shorter side fits and the middle is cut out, as CLIP does: what lies outside
#: is not seen. pad: letterboxed on the mean colour.
TILE_FITS = ("tiles", "crop", "pad")


def place(image: np.ndarray, where: Frame, fit: str, mean, std) -> torch.Tensor:
    """HxWx3 uint8 -> [3, S, S] normalised; padding is zero after normalisation."""
    return torch.from_numpy(placed(image, where, fit, mean, std))


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
    return torch.from_numpy(normalized_array(pil_image, mean, std))

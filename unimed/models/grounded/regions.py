"""Regions given with a question, as masks or boxes: which image tokens lie in them, and how they stand in the text.

A region is shown to the language model by repeating the image tokens under it between <vp> and </vp>. The wording and
the place of the tokens are those of Sa2VA (arXiv 2501.04001) and UniBiomed, whose checkpoints were trained with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from unimed.structures import Region
from unimed.tokens import REGION_END, REGION_START


class PromptError(ValueError):
    """A question that cannot be asked: empty, too long, with too many phrases, or with a region that does not fit."""


def region_masks(regions: Sequence, size: tuple[int, int]) -> np.ndarray:
    """Masks, boxes and `Region`s of one image as bool [N, H, W].

    Args:
        regions: each a mask [H, W] (anything above 0 counts), a box (x1, y1, x2, y2) in pixels of the image, or a
            `Region` with a mask or a box.
        size: (H, W) of the image.

    Raises:
        PromptError: names the region by its number, from 1 as in the text.
    """
    return np.stack([_one_mask(region, size, number) for number, region in enumerate(regions, start=1)])


def _one_mask(region, size: tuple[int, int], number: int) -> np.ndarray:
    if isinstance(region, Region):
        region = region.mask if region.mask is not None else region.box_xyxy_px
        if region is None:
            raise PromptError(f"region {number} has neither a mask nor a box")
    array = np.asarray(region)
    if array.shape == (4,):
        return _box_mask(array.astype(float), size, number)
    if array.ndim != 2 or array.shape != tuple(size):
        raise PromptError(
            f"region {number} has shape {array.shape}; give a mask of the image's size {tuple(size)} "
            "or a box (x1, y1, x2, y2) in its pixels"
        )
    if not (array > 0).any():
        raise PromptError(f"region {number} is empty: its mask has no pixel; leave it out")
    return array > 0


def _box_mask(box: np.ndarray, size: tuple[int, int], number: int) -> np.ndarray:
    height, width = size
    x1, y1, x2, y2 = box
    if not np.isfinite(box).all() or x2 <= x1 or y2 <= y1:
        raise PromptError(f"region {number}: box {box.tolist()} has no area; a box is (x1, y1, x2, y2)")
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise PromptError(f"region {number}: box {box.tolist()} lies outside the image of {width} x {height} px")
    mask = np.zeros(size, dtype=bool)
    # A pixel belongs to a box that covers any part of it.
    mask[max(0, int(y1)) : int(np.ceil(y2)), max(0, int(x1)) : int(np.ceil(x2))] = True
    return mask


def region_cells(masks: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """Which image tokens lie in each region: bool [N, rows, columns] of masks [N, H, W].

    The nearest pixel of each cell decides, as published; a region too small to meet one takes every cell it touches
    (published code gives it no token at all).
    """
    regions = torch.from_numpy(np.ascontiguousarray(masks)).float()[:, None]
    cells = F.interpolate(regions, grid, mode="nearest")[:, 0] > 0
    lost = ~cells.flatten(1).any(1)
    if bool(lost.any()):
        cells[lost] = F.adaptive_max_pool2d(regions[lost], grid)[:, 0] > 0
    return cells


def region_text(cells: torch.Tensor, image_token: str) -> str:
    """What stands behind the image in the question: each region with a place for its tokens."""
    counts = cells.flatten(1).sum(1).tolist()
    named = ", ".join(
        f"region{number}{REGION_START}{image_token * count}{REGION_END}" for number, count in enumerate(counts, start=1)
    )
    return f"\nThere are {len(counts)} part regions in the picture: {named}.\n"


def token_index(token_count: int, cells: torch.Tensor | None) -> torch.Tensor:
    """Which of the tokens of an image stand at its places in the text, in reading order: int64 [token_count + regions].

    All tokens come first, then those under each region. `cells` [N, rows, columns] speak of the last tile, which shows
    the whole image.
    """
    every = torch.arange(token_count)
    if cells is None:
        return every
    first = token_count - cells[0].numel()
    return torch.cat([every, *(first + torch.nonzero(one.flatten())[:, 0] for one in cells.cpu())])

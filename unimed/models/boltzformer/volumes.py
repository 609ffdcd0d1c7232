"""Masks of a whole volume, prompt by prompt: what training measures. Users have `unimed.inference.volume_text`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unimed.io.slices import SliceGrid, choose_axis, with_neighbours
from unimed.io.windows import to_uint8
from unimed.models.boltzformer.postprocessing import upsample


@torch.no_grad()
def volume_masks(
    model, volume: np.ndarray, prompts: Sequence[str], *, seed: int = 0, threshold: float = 0.5, batch_size: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Every prompt by itself, slice by slice; masks may overlap.

    Args:
        volume: (I, J, K); anything but uint8 is windowed as `choose_window` says.
        threshold: least existence of a target on a slice.
        batch_size: slices at a time.

    Returns:
        masks bool [P, I, J, K], and the highest existence over the slices [P].
    """
    volume = to_uint8(volume)
    grid = SliceGrid(volume.shape, choose_axis(volume.shape), model.config.image_size)
    features = model.encode_prompts(prompts)
    masks = np.zeros((len(prompts), *volume.shape), bool)
    highest = np.zeros(len(prompts))
    for start in range(0, grid.depth, batch_size):
        stop = min(start + batch_size, grid.depth)
        first, last = max(start - 1, 0), min(stop + 1, grid.depth)
        planes = grid.prepare(grid.planes(volume, first, last)).float().clamp(0, 255)
        images = with_neighbours(planes, first, start, stop, grid.depth).to(model.device)
        output = model.segment_slices(images, features, seed=seed, slice_numbers=range(start, stop))
        logits = upsample(output.mask_logits, grid.size)
        drawn = (logits > 0) & (output.existence > threshold)[..., None, None]
        for row in range(len(prompts)):
            grid.put(masks[row], grid.restore(drawn[:, row].int().cpu()) > 0, start)
        highest = np.maximum(highest, output.existence.max(0).values.cpu().numpy())
    return masks, highest

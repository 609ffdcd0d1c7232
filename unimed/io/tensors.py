"""Tensors of torch as images: what torchvision, a data set or a program of the user's own hands over."""

from __future__ import annotations

import sys
from typing import TypeGuard

import numpy as np

from unimed.io.errors import ImageError


def is_tensor(source) -> TypeGuard:
    """Whether it is a tensor of torch, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def array_of(tensor, name: str = "") -> np.ndarray:
    """A tensor as the array that `unimed.io.images.load` takes.

    Args:
        tensor: [H, W], [H, W, 3], or as torchvision has them [1, H, W] and [3, H, W], with one more axis of length 1 in
            front where it is a batch of one; on any device. Floats of color images, and all floats within 0 to 1, are
            0..1 and become 0..255; other values are taken as they are stored, a volume [D, H, W] too.

    Raises:
        ImageError: a batch of several, or colors outside of 0 to 1, as the normalized pixels of a processor are.
    """
    label = name or "tensor"
    values = tensor.detach().cpu()
    array = (values if values.dtype.itemsize > 2 or not values.is_floating_point() else values.float()).numpy()
    if array.ndim == 4 and array.shape[1] in (1, 3):
        if len(array) != 1:
            raise ImageError(f"{label}: a batch of {len(array)} images; give them as a list, or to predict_batch")
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.dtype.kind != "f" or not array.size:
        return array
    low, high = float(array.min()), float(array.max())
    if 0 <= low and high <= 1:
        return np.rint(array * 255).astype(np.uint8)
    if array.ndim == 3 and array.shape[-1] == 3:
        raise ImageError(
            f"{label}: values from {low:g} to {high:g}; colors are uint8, or floats from 0 to 1. Give the image as it "
            "was before it was normalized"
        )
    return array

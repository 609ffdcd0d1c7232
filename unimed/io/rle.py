"""COCO run lengths: how masks stand in JSON."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Bool mask HxW or DxHxW -> {"size": shape, "counts": runs}.

    Runs are counted column by column (Fortran order of HxW; slices one after another), beginning with zeros, as in
    COCO's uncompressed form.
    """
    slices = mask[None] if mask.ndim == 2 else mask
    flat = np.concatenate([plane.ravel(order="F") for plane in slices])
    changes = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": ([0] + runs) if flat.size and flat[0] else runs}


def decode_mask(encoded: dict[str, Any]) -> np.ndarray:
    """The mask of `encode_mask`, bool.

    Raises:
        ValueError: the runs do not add up to the size.
    """
    shape = tuple(encoded["size"])
    counts = np.asarray(encoded["counts"], dtype=np.int64)
    if counts.sum() != np.prod(shape) or (counts < 0).any():
        raise ValueError(f"run lengths add up to {counts.sum()}, the size {shape} holds {np.prod(shape)}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    planes = flat.reshape(-1, shape[-1], shape[-2]).transpose(0, 2, 1)
    return planes.reshape(shape)

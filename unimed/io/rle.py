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


def compress_counts(counts: list[int]) -> str:
    """Runs as the string pycocotools writes: differences to the run before last, five bits and a flag per letter."""
    letters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -1 if bits & 16 else value != 0
            letters.append(chr(48 + (bits | 32 if more else bits)))
    return "".join(letters)


def expand_counts(text: str) -> list[int]:
    """The runs of `compress_counts`.

    Raises:
        ValueError: the string ends within a number or holds other letters.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"letter {letter!r} is none of a compressed run length")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the compressed run lengths end within a number")
    return counts


def encode_compressed(mask: np.ndarray) -> dict[str, Any]:
    """Bool mask HxW -> {"size": [H, W], "counts": string}, as pycocotools and UniBiomed's prediction files have it."""
    encoded = encode_mask(mask)
    return {"size": encoded["size"], "counts": compress_counts(encoded["counts"])}


def decode_mask(encoded: dict[str, Any]) -> np.ndarray:
    """The mask of `encode_mask` or `encode_compressed`, bool.

    Raises:
        ValueError: the runs do not add up to the size.
    """
    shape = tuple(encoded["size"])
    counts = encoded["counts"]
    counts = np.asarray(expand_counts(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    if counts.sum() != np.prod(shape) or (counts < 0).any():
        raise ValueError(f"run lengths add up to {counts.sum()}, the size {shape} holds {np.prod(shape)}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    planes = flat.reshape(-1, shape[-1], shape[-2]).transpose(0, 2, 1)
    return planes.reshape(shape)

"""From mask and existence logits to label maps: which prompts are there, which repeat another, who gets a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

OVERLAPS = ("nms", "argmax", "keep")


def upsample(logits: torch.Tensor, size) -> torch.Tensor:
    """[..., h, w] logits to `size` (one side or (H, W)) with antialiased bicubic weights, before any sigmoid."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(logits.shape[-2:]) == size:
        return logits
    flat = logits.reshape(1, -1, *logits.shape[-2:]).float()
    resized = F.interpolate(flat, size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.reshape(*logits.shape[:-2], *size)


def enlarge_bilinear(logits: torch.Tensor, size: int) -> torch.Tensor:
    """[h, w] logits to a square of `size` px, as v1 draws its masks."""
    return F.interpolate(logits[None, None].float(), size=(size, size), mode="bilinear", align_corners=False)[0, 0]


def distinct(
    probability: torch.Tensor, existence: torch.Tensor, *, iou: float = 0.5, threshold: float = 0.5
) -> list[int]:
    """Prompts of one slice that are there and do not repeat a more confident one, the most confident first.

    Args:
        probability: [P, H, W] in [0, 1]. existence: [P] in [0, 1].
        iou: a mask that overlaps a kept one by more than this, whatever its class, is taken for a repetition.
        threshold: least existence.
    """
    order = torch.argsort(existence, descending=True).tolist()
    masks = (probability > 0.5).flatten(1).float()
    sizes = masks.sum(1)
    shared = masks @ masks.T
    overlap = shared / (sizes[:, None] + sizes[None] - shared).clamp_min(1)
    kept: list[int] = []
    for prompt in order:
        if existence[prompt] < threshold:
            break
        if sizes[prompt] and all(overlap[prompt, other] <= iou for other in kept):
            kept.append(prompt)
    return kept


def there_by_existence(existence: torch.Tensor, *, threshold: float = 0.5, overlap: str = "nms") -> list[int]:
    """Prompts of one slice whose existence [P] is enough; at the threshold itself only where "nms" compares several."""
    enough = existence >= threshold if overlap == "nms" and len(existence) > 1 else existence > threshold
    return enough.nonzero()[:, 0].tolist()


def present_probability(
    logits: torch.Tensor,
    existence: torch.Tensor,
    *,
    threshold: float = 0.5,
    overlap: str = "nms",
    iou: float = 0.5,
) -> torch.Tensor:
    """Probability maps of one slice, zero for prompts that are not there.

    Args:
        logits: [P, H, W]. existence: [P] in [0, 1].
        overlap: "nms" drops prompts that repeat a more confident one, see `distinct` (published); "argmax" and "keep"
            do not.

    Returns:
        [P, H, W] in [0, 1].

    Raises:
        ValueError: unknown `overlap`.
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"unknown overlap {overlap!r}; known are {', '.join(OVERLAPS)}")
    probability = logits.sigmoid()
    if overlap == "nms" and len(logits) > 1:
        there = torch.zeros_like(existence)
        there[distinct(probability, existence, iou=iou, threshold=threshold)] = 1
    else:
        there = (existence > threshold).to(probability.dtype)
    return probability * there[:, None, None]


def merge(probability: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Each pixel to the most probable prompt above 0.5: [P, ...] to integer labels [...]; ties go to the first.

    Args:
        ids: the label of each prompt; 0 is nothing.
    """
    background = torch.full_like(probability[:1], 0.5)
    # Not `argmax`, which takes up to fourteen times as long over the first axis; both give the first of equals.
    winner = torch.cat((background, probability)).max(0).indices
    return torch.tensor([0, *ids], device=probability.device)[winner]

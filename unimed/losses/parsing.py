"""Losses of BiomedParse v2: dice and cross entropy on masks and edges where the target is there, and existence."""

from __future__ import annotations

import torch
from torch.nn import functional as F

#: Added to both sides of the dice ratio.
SMOOTH = 1e-5


def resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[N, C, h, w] to [N, C, *size], bicubic with antialiasing, as the published code does before every sigmoid."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bicubic", align_corners=False, antialias=True)


def squared_dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - (2I + s) / (P² + T² + s) of each item on probabilities; [N, ...] -> [N]."""
    probability, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (probability * targets).sum(1)
    return 1 - (2 * overlap + SMOOTH) / (probability.square().sum(1) + targets.square().sum(1) + SMOOTH)


def label_edges(labels: torch.Tensor) -> torch.Tensor:
    """Pixels whose 3x3 neighbourhood holds more than one label, bool [N, H, W].

    Between touching instances of a numbered map there is an edge too. The border of the image is none.
    """
    padded = F.pad(labels[:, None].float(), (1, 1, 1, 1), mode="replicate")
    highest = F.max_pool2d(padded, 3, stride=1)
    lowest = -F.max_pool2d(-padded, 3, stride=1)
    return (highest - lowest)[:, 0] > 0


def parsing_losses(
    mask_logits: torch.Tensor,
    existence_logits: torch.Tensor,
    labels: torch.Tensor,
    edge_logits: torch.Tensor | None = None,
    *,
    positive_weight: float = 3.0,
) -> dict[str, torch.Tensor]:
    """Losses of N prompts one by one: `{"dice", "bce", "edge", "existence", "present"}`, each [N].

    Args:
        mask_logits: [N, 1, h, w]. existence_logits: [N, 1]. edge_logits: [N, 1, h, w], or None: "edge" is zero.
        labels: [N, H, W] integers, 0 for background; other numbers tell instances apart.
        positive_weight: of present targets in the existence loss.

    Mask and edge losses of prompts whose target is not there are zero; their existence is all that is trained.
    """
    size = tuple(labels.shape[-2:])
    target = (labels > 0).float()
    present = target.flatten(1).any(1).float()
    existence = F.binary_cross_entropy_with_logits(
        existence_logits[:, 0].float(),
        present,
        pos_weight=torch.tensor(positive_weight, device=labels.device),
        reduction="none",
    )

    def compared(logits, wanted):
        shown = resize_logits(logits.float(), size)[:, 0]
        bce = F.binary_cross_entropy_with_logits(shown, wanted, reduction="none").flatten(1).mean(1)
        return present * squared_dice_loss(shown, wanted), present * bce

    dice, bce = compared(mask_logits, target)
    edge = torch.zeros_like(dice)
    if edge_logits is not None:
        edge = sum(compared(edge_logits, label_edges(labels).float()))
    return {"dice": dice, "bce": bce, "edge": edge, "existence": existence, "present": present}

"""Mask losses of the grounded models (UniBiomed, Sa2VA): dice and binary cross entropy on sampled points."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def dice_loss(logits: torch.Tensor, targets: torch.Tensor, eps: float = 1.0) -> torch.Tensor:
    """Mean over N of 1 - (2I + eps) / (P + T + eps) on probabilities; [N, ...] each. Divided by N + 1e-4."""
    probability = logits.float().sigmoid().flatten(1)
    targets = targets.float().flatten(1)
    overlap = (probability * targets).sum(1)
    dice = (2 * overlap + eps) / (probability.sum(1) + targets.sum(1) + eps)
    return (1 - dice).sum() / (len(logits) + 1e-4)


def mask_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy on logits, summed and divided by the number of points + 1e-4; [N, ...] each."""
    total = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")
    return total / (logits.numel() + 1e-4)


def sample_points(
    logits: torch.Tensor,
    count: int,
    oversample: float = 3.0,
    importance: float = 0.75,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Places where a mask is looked at: most where it is unsure (PointRend, arXiv 1912.08193).

    Args:
        logits: [N, h, w].
        count: points per mask.
        oversample: candidates per point.
        importance: fraction of points taken by uncertainty, the rest at random.

    Returns:
        [N, count, 2] x, y in [0, 1].
    """
    masks = len(logits)
    candidates = int(count * oversample)
    device = logits.device
    points = torch.rand(masks, candidates, 2, generator=generator, device=device)
    uncertain = int(importance * count)
    values = point_values(logits, points)
    chosen = values.abs().topk(uncertain, dim=1, largest=False).indices
    picked = points.gather(1, chosen[..., None].expand(-1, -1, 2))
    rest = torch.rand(masks, count - uncertain, 2, generator=generator, device=device)
    return torch.cat([picked, rest], dim=1)


def point_values(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear values of [N, h, w] at [N, P, 2] x, y in [0, 1] -> [N, P]."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps[:, None].float(), grid, align_corners=False)[:, 0, :, 0]


def mask_losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    points: int | None = 12544,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """`{"dice", "bce"}` of N masks, unweighted.

    Args:
        logits: [N, h, w].
        targets: [N, H, W] of 0 and 1.
        points: sampled points per mask; None compares every pixel (targets are then resized to the logits).
    """
    if len(logits) == 0:
        zero = logits.sum() * 0.0
        return {"dice": zero, "bce": zero}
    if points is None:
        if targets.shape[-2:] != logits.shape[-2:]:
            targets = F.interpolate(targets[:, None].float(), logits.shape[-2:], mode="nearest")[:, 0]
        return {"dice": dice_loss(logits, targets), "bce": mask_cross_entropy(logits, targets)}
    with torch.no_grad():
        places = sample_points(logits.detach(), points, generator=generator)
        wanted = point_values(targets, places)
    predicted = point_values(logits, places)
    return {"dice": dice_loss(predicted, wanted), "bce": mask_cross_entropy(predicted, wanted)}

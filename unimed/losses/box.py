"""Box losses: corner distance, generalised IoU, and the likelihood where the head gives a spread."""

from __future__ import annotations

import torch
from torchvision.ops import generalized_box_iou_loss


def box_loss(prediction, target_xyxy: torch.Tensor) -> dict[str, torch.Tensor]:
    """`{"l1", "giou"}` and `"nll"` where the head gives a spread; means over the N boxes, unweighted.

    Args:
        prediction: has `boxes_cxcywh` [N, 4] in [0, 1] and `log_scale` [N, 4] or None.
        target_xyxy: [N, 4] corners in [0, 1].

    Raises:
        ValueError: another number of boxes than predictions, or a target without area.
    """
    cx, cy, w, h = prediction.boxes_cxcywh.unbind(-1)
    corners = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)
    if len(corners) != len(target_xyxy):
        raise ValueError(f"{len(corners)} predicted boxes for {len(target_xyxy)} targets")
    if bool((target_xyxy[:, 2:] <= target_xyxy[:, :2]).any()):
        raise ValueError("a target box has no area")
    distance = (corners - target_xyxy).abs()
    losses = {"l1": distance.mean(), "giou": generalized_box_iou_loss(corners, target_xyxy, reduction="mean")}
    if prediction.log_scale is not None:
        scale = prediction.log_scale
        # The box itself is taught by the two terms above; the likelihood teaches the spread.
        losses["nll"] = (distance.detach() * torch.exp(-scale) + scale).mean()
    return losses

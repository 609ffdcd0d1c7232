"""Conversions and overlaps of boxes as torch tensors; the only place where centre form and corner form meet.

Normalised boxes are shares of the frame they refer to, 0 to 1. `cxcywh` is centre x, centre y, width, height; `xyxy` is
left, top, right, bottom.
"""

from __future__ import annotations

import torch


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """Centre and size [..., 4] -> corners [..., 4], any unit."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: torch.Tensor) -> torch.Tensor:
    """Corners [..., 4] -> centre and size [..., 4], any unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def std_cxcywh_to_xyxy(std: torch.Tensor) -> torch.Tensor:
    """Standard deviations of centre and size [..., 4] -> those of the corners; both are taken as independent."""
    corner = (std[..., :2].square() + std[..., 2:].square() / 4).sqrt()
    return torch.cat([corner, corner], dim=-1)


def paired_iou(first_xyxy: torch.Tensor, second_xyxy: torch.Tensor, eps: float = 1e-16) -> torch.Tensor:
    """Overlap row by row, shapes broadcast: [..., 4], [..., 4] -> [...] in [0, 1]."""
    intersection, union = _intersection_union(first_xyxy, second_xyxy)
    return intersection / (union + eps)


def paired_giou(first_xyxy: torch.Tensor, second_xyxy: torch.Tensor) -> torch.Tensor:
    """Generalised overlap row by row (Rezatofighi et al. 2019), in [-1, 1] for boxes with positive sides.

    Areas keep their sign, as in the published loss: an unbounded head may give negative sides and is pulled back. Two
    boxes without area, where the published code gives NaN, have the overlap 0.
    """
    intersection, union = _intersection_union(first_xyxy, second_xyxy)
    low = torch.minimum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.maximum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1)
    union, hull = (torch.where(value == 0, torch.ones_like(value), value) for value in (union, hull))
    return intersection / union - (hull - union) / hull


def _intersection_union(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) for boxes in (first, second)]
    return intersection, areas[0] + areas[1] - intersection

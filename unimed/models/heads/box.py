"""Box heads read the hidden state of a [BOX] token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class BoxPrediction:
    """Boxes of N states.

    `boxes_cxcywh` [N, 4] in [0, 1] of the image; `std` [N, 4] the standard deviation of each corner coordinate
    (x1, y1, x2, y2) in the same unit, None where the head gives no uncertainty; `log_scale` [N, 4] the logarithm of
    the Laplace scale the loss works with.
    """

    boxes_cxcywh: torch.Tensor
    std: torch.Tensor | None = None
    log_scale: torch.Tensor | None = None


class PointBoxHead(nn.Module):
    """Linear, ReLU, Linear, ReLU, Linear to a centre and a size by a sigmoid (LISA and uMedGround decode so)."""

    outputs = 4

    def __init__(self, hidden_dim: int, width: int | None = None):
        super().__init__()
        width = width or hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(hidden_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.outputs)
        )

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        """[N, D] -> boxes."""
        return BoxPrediction(self.layers(states).float().sigmoid())


class LaplaceBoxHead(PointBoxHead):
    """A box and, per corner coordinate, the scale of a Laplace distribution around it.

    The scale is learnt by likelihood, so a hard box says that it is hard; `std` is sqrt(2) times the scale.
    """

    outputs = 8

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        box, log_scale = self.layers(states).float().chunk(2, dim=-1)
        # Between a thousandth and the whole of the image.
        log_scale = -6.9 * torch.sigmoid(log_scale)
        return BoxPrediction(box.sigmoid(), 2**0.5 * log_scale.exp(), log_scale)


BOX_HEADS = {"point": PointBoxHead, "laplace": LaplaceBoxHead}


def build_box_head(kind: str, hidden_dim: int, **options) -> nn.Module:
    """A box head by name.

    Raises:
        ValueError: unknown kind; the known ones are listed.
    """
    if kind not in BOX_HEADS:
        raise ValueError(f"no box head {kind!r}; known are {', '.join(BOX_HEADS)}")
    return BOX_HEADS[kind](hidden_dim, **options)

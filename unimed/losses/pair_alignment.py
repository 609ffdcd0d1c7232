"""Contrastive side loss of a grounded model: image tokens and captions of one pair lie close in a shared space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from unimed.losses.contrastive import MAX_LOG_SCALE


class PairAlignment(nn.Module):
    """Two projections and a temperature, with a memory of earlier pairs as further negatives (arXiv 1912.06798).

    A batch of a mixture holds few pairs, and ranks hold different numbers of them, so negatives come from the memory
    of this rank instead of from other ranks. Pairs with equal captions are no negatives of each other.

    Args:
        dim: width D of image tokens and hidden states.
        width: of the shared space.
        memory: earlier pairs that are kept.
    """

    def __init__(self, dim: int, width: int = 128, memory: int = 256):
        super().__init__()
        self.image, self.text = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # FSDP splits no scalars
        self.memory = memory
        self._kept: tuple[torch.Tensor, torch.Tensor, list[str]] | None = None

    def forward(self, image: torch.Tensor, text: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """Symmetric InfoNCE of N pairs: pooled image tokens [N, D] and pooled states of their captions [N, D].

        While training, the pairs are kept for later batches. 0 where there is nothing to tell a pair from.
        """
        dtype = self.image.weight.dtype
        image = F.normalize(self.image(image.to(dtype)), dim=-1).float()
        text = F.normalize(self.text(text.to(dtype)), dim=-1).float()
        names = list(captions)
        every_image, every_text, every_name = image, text, names
        if self._kept is not None:
            every_image = torch.cat([image, self._kept[0].to(image.device)])
            every_text = torch.cat([text, self._kept[1].to(text.device)])
            every_name = names + self._kept[2]
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp().float()
        same = torch.tensor([[one == other for other in every_name] for one in names], device=image.device)
        same.fill_diagonal_(False)
        targets = torch.arange(len(names), device=image.device)
        losses = [
            F.cross_entropy((scale * mine @ others.T).masked_fill(same, float("-inf")), targets)
            for mine, others in ((image, every_text), (text, every_image))
        ]
        if self.training:
            keep = slice(0, self.memory)
            self._kept = (every_image[keep].detach(), every_text[keep].detach(), every_name[: self.memory])
        return sum(losses) / 2

"""Routers of mixtures of experts: the weight of each expert for each visual token, and load-balancing losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Router(nn.Module):
    """Two linear layers with a GELU between: [..., inputs] -> logits [..., experts]. The hidden width is 4 * inputs."""

    def __init__(self, inputs: int, experts: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, 4 * inputs)
        self.fc2 = nn.Linear(4 * inputs, experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def routing_weights(logits: torch.Tensor, router_type: str, topk: int) -> torch.Tensor:
    """Logits [..., E] -> weights [..., E] that sum to 1, in float32.

    "soft" divides sigmoids by their sum (Uni-Med, not a softmax); "sparse" is a softmax over the `topk` largest logits
    and exactly 0 elsewhere.
    """
    logits = logits.float()
    if router_type == "soft":
        gates = logits.sigmoid()
        return gates / gates.sum(-1, keepdim=True)
    chosen = logits.topk(topk, dim=-1).indices
    outside = torch.ones_like(logits, dtype=torch.bool).scatter_(-1, chosen, False)
    return logits.masked_fill(outside, float("-inf")).softmax(-1)


def load_balancing_loss(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """E * sum_e f_e * p_e over all tokens: f_e the share of choices that fell on expert e, p_e its mean probability.

    1 when all experts are used alike, at most E (Switch Transformer, arXiv 2101.03961, eq. 4). `logits` and `weights`
    are [..., E]; a token with k chosen experts counts 1/k for each.
    """
    experts = logits.shape[-1]
    chosen = (weights > 0).float().reshape(-1, experts)
    fraction = (chosen / chosen.sum(-1, keepdim=True)).mean(0)
    probability = logits.float().softmax(-1).reshape(-1, experts).mean(0)
    return experts * (fraction.detach() * probability).sum()


def z_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean squared log-sum-exp of the logits [..., E] (ST-MoE, arXiv 2202.08906, eq. 5): keeps logits small."""
    return logits.float().logsumexp(-1).square().mean()

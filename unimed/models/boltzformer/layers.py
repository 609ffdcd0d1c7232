"""Blocks shared by pixel decoder and mask decoder. Sequences are batch first: [N, length, C]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention with packed projections (names and packing of `nn.MultiheadAttention`)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, values, part: int):
        """[N, L, C] -> [N, heads, L, C/heads] by the projection of query (0), key (1) or value (2)."""
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return F.linear(values, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, query, key, value, mask=None):
        """`mask` broadcasts to [N, heads, Lq, Lk]: bool with True for "may attend", or an additive bias."""
        mixed = F.scaled_dot_product_attention(
            self.project(query, 0), self.project(key, 1), self.project(value, 2), attn_mask=mask
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class CrossAttentionLayer(nn.Module):
    """Attention, residual, norm."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.multihead_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden, query, key, value, mask=None):
        return self.norm(hidden + self.multihead_attn(query, key, value, mask))


class SelfAttentionLayer(nn.Module):
    """Attention with positions added to query and key, residual, norm."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden, position, mask=None):
        placed = hidden + position
        return self.norm(hidden + self.self_attn(placed, placed, hidden, mask))


class FeedForwardLayer(nn.Module):
    """Two linear layers with ReLU, residual, norm."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden):
        return self.norm(hidden + self.linear2(self.linear1(hidden).relu()))


class MaskEmbedding(nn.Module):
    """Three linear layers from a query to the channels of the mask features."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, hidden):
        return self.layers[2](self.layers[1](self.layers[0](hidden).relu()).relu())


def sine_positions(height: int, width: int, dim: int, device=None, dtype=torch.float32) -> torch.Tensor:
    """Sine code of a grid, [height*width, dim]: first half y, second half x (DETR)."""

    def axis(length):
        place = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
        index = torch.arange(dim // 2, device=device, dtype=torch.float32)
        angle = place[:, None] / 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / (dim // 2))
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y, x = axis(height), axis(width)
    code = torch.cat((y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)), dim=-1)
    return code.flatten(0, 1).to(dtype)


class Layout:
    """Which of N items (image, prompt) belongs to which of B images; items are image-major.

    Args:
        counts: prompts of each image.
    """

    def __init__(self, counts: Sequence[int], device=None):
        self.counts = [int(count) for count in counts]
        self.items = sum(self.counts)
        self.each = self.counts[0] if len(set(self.counts)) == 1 else None
        images = torch.arange(len(self.counts), device=device)
        self.image_of_item = images.repeat_interleave(torch.tensor(self.counts, device=device))

    def side_by_side(self, values):
        """[N, Q, ...] -> [B, P*Q, ...], where every image has P prompts."""
        return values.unflatten(0, (-1, self.each)).flatten(1, 2)

    def apart(self, values):
        """Back: [B, P*Q, ...] -> [N, Q, ...]."""
        return values.unflatten(1, (self.each, -1)).flatten(0, 1)


def draw_masks(embedded, mask_features, layout: Layout):
    """[N, Q, D] and [B, D, h, w] -> logits [N, Q, h, w]; features are never copied per prompt."""
    if layout.each:
        return layout.apart(torch.einsum("bqc,bchw->bqhw", layout.side_by_side(embedded), mask_features))
    groups = zip(embedded.split(layout.counts), mask_features, strict=True)
    return torch.cat([torch.einsum("nqc,chw->nqhw", mine, features) for mine, features in groups])


def look_at_image(layer: CrossAttentionLayer, queries, position, memory, place, mask, layout: Layout):
    """Cross-attention of every item with its image, whose keys and values are projected once.

    Args:
        queries, position: [N, Q, D]. memory, place: [B, HW, D] and [HW, D]. mask: [N, heads or 1, Q, HW].
    """
    if layout.each:
        mask = layout.side_by_side(mask.transpose(1, 2)).transpose(1, 2)  # [B, heads, P*Q, HW]
        fold = layout.side_by_side
        return layout.apart(layer(fold(queries), fold(queries + position), memory + place, memory, mask))
    memory = memory[layout.image_of_item]
    return layer(queries, queries + position, memory + place, memory, mask)


def note(record: dict | None, name: str, value) -> None:
    """Keep an intermediate value for comparison, where somebody asked for it."""
    if record is not None:
        record[name] = value

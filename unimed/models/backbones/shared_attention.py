"""Attention of tokens that are split over ranks: each rank attends for all tokens in a part of the heads.

DeepSpeed-Ulysses (arXiv 2309.14509) around transformers' own `sdpa`, in its registries of attention functions.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_context_parallel"
#: What a decoder is given in any family (the last one is for its head); others would have to be cut in their own way.
KNOWN = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position", "logits_to_keep"}


class Sharing(Protocol):
    """Who shares: `group` of so many ranks (`size`), and whether tokens are split now (`active`)."""

    group: dist.ProcessGroup
    size: int
    active: bool


def attend_by_parts(decoder: nn.Module, sharing: Sharing) -> None:
    """Let the layers of a decoder attend so; masks are made for whole sequences, as for `sdpa`."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    decoder.config._attn_implementation = ATTENTION
    for layer in decoder.layers:
        layer.self_attn.context_parallel = sharing


def _attention(module, query, key, value, attention_mask, **options):
    sharing = getattr(module, "context_parallel", None)
    if sharing is None or not sharing.active:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attend(sharing, module, query, key, value, attention_mask, **options)


class _Exchange(torch.autograd.Function):
    """[N, ...] -> [N, ...]: the r-th entry goes to rank r of the group, entries come in the order of ranks."""

    @staticmethod
    def forward(ctx, parts, group):
        ctx.group, parts = group, parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx, gradient):
        return _Exchange.apply(gradient, ctx.group), None


def attend(sharing: Sharing, module, query, key, value, mask, **options):
    """Attention of all tokens in this rank's heads, between [B, H, l, C] and [B, l, H, C] of its tokens."""
    for name, given in options.items():
        if torch.is_tensor(given) and name not in KNOWN:
            raise ValueError(f"context_parallel: {type(module).__name__} also reads {name!r}; leave it out for it")
    if key.shape[1] % sharing.size:
        repeats = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(repeats, dim=1) for one in (key, value))
        module = _Grouped(module)
    query, key, value = (_whole(one, sharing) for one in (query, key, value))
    padded = query.shape[2]
    if mask is not None:
        query, key, value = (one[:, :, : mask.shape[-1]] for one in (query, key, value))
    # Without a mask attention is causal, and no token sees what stands behind the end.
    found, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
    found = F.pad(found, (0, 0, 0, 0, 0, padded - found.shape[1]))
    parts = found.unflatten(1, (sharing.size, -1)).movedim(1, 0)  # [N, B, l, H / N, C]
    return _Exchange.apply(parts, sharing.group).permute(1, 2, 0, 3, 4).flatten(2, 3), weights


def _whole(heads: torch.Tensor, sharing: Sharing) -> torch.Tensor:
    """All heads of a part of the tokens [B, H, l, C] -> a part of the heads of all tokens [B, H / N, N * l, C]."""
    parts = heads.unflatten(1, (sharing.size, -1)).movedim(1, 0)
    return _Exchange.apply(parts, sharing.group).permute(1, 2, 0, 3, 4).flatten(2, 3)


class _Grouped:
    """An attention module whose keys and values were repeated for every head already."""

    num_key_value_groups = 1

    def __init__(self, module: nn.Module):
        self._module = module

    def __getattr__(self, name: str):
        return getattr(self._module, name)

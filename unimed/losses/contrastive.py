"""Contrastive losses over all pairs of a batch, also of one that is spread over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import functional as F

#: Largest logarithm of the scale (a factor of 100), as of CLIP (arXiv 2103.00020).
MAX_LOG_SCALE = 4.6051702


def gather(features: torch.Tensor) -> torch.Tensor:
    """[N, D] of every rank -> [world * N, D] in the order of the ranks; gradients flow back to every rank.

    All ranks must bring the same N. Without a process group the features themselves.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features.contiguous()))


def _own(features: torch.Tensor) -> torch.Tensor:
    return features


def _offset(count: int) -> int:
    return dist.get_rank() * count if dist.is_initialized() else 0


def clip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    groups: torch.Tensor | None = None,
    across_ranks: bool = True,
) -> torch.Tensor:
    """Symmetric InfoNCE of this rank's pairs against those of all ranks (CLIP, arXiv 2103.00020).

    Args:
        image_features, text_features: [N, D], unit length; pair i is row i of both.
        logit_scale: factor, not its logarithm.
        groups: [N] integers; pairs of one group fit each other too (captions made from one label, say), and the target
            is spread evenly over them. None: only row i fits row i, as published.
        across_ranks: False compares the pairs of this rank alone; nothing is exchanged.

    Returns:
        The mean over the local rows of both directions. The mean over ranks is the loss of the joined batch, and after
        averaging over ranks (as DDP does) so is the gradient.
    """
    collect = gather if across_ranks else _own
    every_image, every_text = collect(image_features), collect(text_features)
    per_image = logit_scale * image_features @ every_text.T
    per_text = logit_scale * text_features @ every_image.T
    count = len(image_features)
    if groups is None:
        targets = torch.arange(count, device=per_image.device) + (_offset(count) if across_ranks else 0)
    else:
        every = _gather_integers(groups) if across_ranks else groups
        same = (groups[:, None] == every[None]).to(per_image.dtype)
        targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(per_image, targets) + F.cross_entropy(per_text, targets)) / 2


def siglip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    groups: torch.Tensor | None = None,
    across_ranks: bool = True,
) -> torch.Tensor:
    """Sigmoid loss of this rank's images against the texts of all ranks (SigLIP, arXiv 2303.15343).

    Arguments as in `clip_loss`. The sum over all pairs divided by the local number of images.
    """
    every_text = (gather if across_ranks else _own)(text_features)
    logits = logit_scale * image_features @ every_text.T + logit_bias
    count = len(image_features)
    if groups is None:
        fits = torch.zeros_like(logits)
        rows = torch.arange(count, device=logits.device)
        fits[rows, rows + (_offset(count) if across_ranks else 0)] = 1
    else:
        every = _gather_integers(groups) if across_ranks else groups
        fits = (groups[:, None] == every[None]).to(logits.dtype)
    return -F.logsigmoid((2 * fits - 1) * logits).sum() / count


def _gather_integers(values: torch.Tensor) -> torch.Tensor:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)

"""Cross-entropy of tokens in pieces, so that the logits of a whole batch never exist."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

#: Bytes of float32 logits that exist at a time; a batch with fewer is computed at once.
MOST_BYTES = 2**28


def token_losses(head, states: torch.Tensor, labels: torch.Tensor, most_bytes: int = MOST_BYTES) -> torch.Tensor:
    """Cross-entropy [N] of each token, in nats, from the states that predict it.

    With a vocabulary of 150 thousand, logits and what their gradient needs take 1.8 MB a token, more than all layers of
    a small model. In pieces, logits are made anew in the backward pass: the head is computed twice, and gradients are
    those of the whole to the last digits of sums. Source: the memory-saving cross-entropy of Liger and Cut Cross
    Entropy (arXiv 2411.09009), here by recomputation, which any head and any device can do.

    Args:
        head: states [N, D] -> logits [N, V].
        states: [N, D].
        labels: [N], ids in [0, V).
        most_bytes: see `MOST_BYTES`.
    """
    vocabulary = getattr(getattr(head, "weight", None), "shape", (0,))[0]
    rows = max(64, most_bytes // max(1, 4 * vocabulary))
    if not vocabulary or len(states) <= rows:
        return _losses(head, states, labels)
    parts = zip(states.split(rows), labels.split(rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_losses(head, *part) for part in parts])
    return torch.cat([checkpoint(_losses, head, *part, use_reentrant=False) for part in parts])


def _losses(head, states, labels) -> torch.Tensor:
    return F.cross_entropy(head(states).float(), labels, reduction="none")

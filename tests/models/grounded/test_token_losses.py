"""Cross-entropy in pieces is that of the whole, with its gradients, and never holds the logits of the whole."""

import pytest
import torch
from torch.nn import functional as F

from tests.closeness import assert_close
from unimed.models.grounded.token_losses import token_losses

TOKENS, WIDTH, VOCABULARY = 300, 16, 1000
PIECE = 4 * VOCABULARY * 70  # bytes of 70 tokens


class Head(torch.nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, VOCABULARY)
        self.seen = []

    def forward(self, states):
        self.seen.append(len(states))
        return super().forward(states)


def made(most_bytes, dtype=torch.float32, count=TOKENS):
    torch.manual_seed(0)
    head, states = Head().to(dtype), torch.randn(count, WIDTH, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (count,))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        losses = token_losses(head, states, labels, most_bytes)
    (losses * torch.arange(1, count + 1) / count).sum().backward()
    return losses.detach(), states.grad, head, max(kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [299, 300, 71])
def test_pieces_are_the_whole(dtype, count):
    whole, states, head, most = made(2**40, dtype, count)
    losses, gradient, other, least = made(PIECE, dtype, count)
    limit = 3e-2 if dtype is torch.bfloat16 else 1e-5
    assert_close(losses, whole, relative=limit)
    assert_close(gradient, states, relative=limit)
    for ours, theirs in zip(other.parameters(), head.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, relative=limit)
    assert head.seen == [count] and max(other.seen) == 70
    assert most >= count * VOCABULARY and least < 2 * 70 * VOCABULARY, "logits of the whole are kept"


def test_it_is_torch_cross_entropy_and_nothing_is_made_twice_without_gradients():
    head, states, labels = Head(), torch.randn(TOKENS, WIDTH), torch.randint(0, VOCABULARY, (TOKENS,))
    with torch.no_grad():
        losses = token_losses(head, states, labels, PIECE)
        assert head.seen == [70, 70, 70, 70, 20]
        assert_close(losses, F.cross_entropy(head(states), labels, reduction="none"))
        assert token_losses(head, states[:0], labels[:0]).shape == (0,)

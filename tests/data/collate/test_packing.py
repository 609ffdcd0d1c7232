"""Packed sequences see only themselves and keep the loss they have alone."""

import pytest
import torch

from unimed.data.collate.packing import block_diagonal_mask, first_fit, pack_rows


def test_first_fit_keeps_to_the_budget_and_loses_nothing():
    lengths = [5, 3, 8, 2, 2, 7, 1]
    bins = first_fit(lengths, 10)
    assert sorted(i for members in bins for i in members) == list(range(7))
    assert all(sum(lengths[i] for i in members) <= 10 for members in bins) and len(bins) == 3


def test_too_long_item_is_named():
    with pytest.raises(ValueError, match="item 1 has 11 tokens"):
        first_fit([2, 11], 10)


def test_mask_is_block_diagonal_and_causal():
    mask = block_diagonal_mask(torch.tensor([[1, 1, 2, 2, 0]]))[0, 0]
    expected = torch.tensor(
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool
    )
    assert torch.equal(mask, expected)
    assert block_diagonal_mask(torch.tensor([[1, 1]]), causal=False)[0, 0].all()


class Language(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(50, 16), torch.nn.Embedding(32, 16)
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 50)

    def forward(self, ids, positions, mask):
        hidden = self.words(ids) + self.places(positions)
        q, k, v = (t[:, None] for t in self.qkv(hidden).chunk(3, dim=-1))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0]
        return self.out(hidden + attended)


def test_packed_losses_equal_single_losses():
    torch.manual_seed(0)
    model = Language()
    sequences = []
    for length in (5, 9, 3, 7, 12, 4):
        ids = torch.randint(1, 50, (length,))
        sequences.append({"input_ids": ids, "labels": ids.clone()})
    packed = pack_rows(sequences, 16, {"input_ids": 0, "labels": -100})
    logits = model(packed["input_ids"], packed["position_ids"], block_diagonal_mask(packed["segment_ids"]))
    token_losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), packed["labels"][:, 1:], reduction="none"
    )
    checked = 0
    for row, members in enumerate(packed["members"]):
        for place, index in enumerate(members, start=1):
            ids = sequences[index]["input_ids"][None]
            alone = model(ids, torch.arange(ids.shape[1])[None], block_diagonal_mask(torch.ones_like(ids)))
            expected = torch.nn.functional.cross_entropy(alone[:, :-1].transpose(1, 2), ids[:, 1:], reduction="sum")
            found = token_losses[row][packed["segment_ids"][row, 1:] == place].sum()
            assert found.item() == pytest.approx(expected.item(), abs=1e-4)
            checked += 1
    assert checked == 6

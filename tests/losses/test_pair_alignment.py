"""The contrastive side loss: pairs are told apart, equal captions are no negatives, earlier pairs are remembered."""

import pytest
import torch

from unimed.losses.pair_alignment import PairAlignment


def test_pairs_are_learned():
    torch.manual_seed(0)
    align = PairAlignment(16, width=8, memory=32)
    optimizer = torch.optim.Adam(align.parameters(), lr=1e-2)
    images, mixing = torch.randn(12, 16), torch.randn(16, 16)
    texts, losses = images @ mixing, []
    for _ in range(150):
        loss = align(images, texts, [f"caption {i}" for i in range(12)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    align.eval()
    align._kept = None
    assert float(align(images, texts, [str(i) for i in range(12)])) < 0.3 < losses[0]


def test_equal_captions_are_no_negatives_and_a_lone_pair_costs_nothing():
    align = PairAlignment(4).eval()
    images = torch.randn(3, 4)
    assert float(align(images, images, ["same"] * 3)) == pytest.approx(0, abs=1e-6)
    assert float(align(images[:1], images[:1], ["one"])) == pytest.approx(0, abs=1e-6)


def test_earlier_pairs_are_negatives_and_the_memory_is_bounded():
    align = PairAlignment(4, memory=5).train()
    for start in range(0, 12, 3):
        align(torch.randn(3, 4), torch.randn(3, 4), [str(start + i) for i in range(3)])
    assert len(align._kept[2]) == 5 and align._kept[2][:3] == ["9", "10", "11"]
    assert float(align(torch.randn(1, 4), torch.randn(1, 4), ["new"]).detach()) > 0
    assert not [name for name in align.state_dict() if "kept" in name]


def test_every_parameter_can_be_split():
    """FSDP refuses parameters without a dimension."""
    assert all(parameter.ndim for parameter in PairAlignment(8).parameters())

import pytest
import torch
from torch import nn

from unimed.losses.box import box_loss
from unimed.models.heads.box import build_box_head
from unimed.models.heads.box_coordinates import cxcywh_to_xyxy, xyxy_to_cxcywh


def test_conversions_are_inverse():
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.9]])
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(corners)), corners)
    assert torch.allclose(xyxy_to_cxcywh(corners), torch.tensor([[0.3, 0.55, 0.4, 0.7]]))


def test_a_head_learns_boxes():
    torch.manual_seed(0)
    head = build_box_head("point", 8)
    states = torch.randn(64, 8)
    centre = 0.5 + 0.1 * torch.tanh(states[:, :2])
    target = torch.cat([centre - 0.1, centre + 0.1], dim=1)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(150):
        loss = sum(box_loss(head(states), target).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prediction = head(states)
    assert (cxcywh_to_xyxy(prediction.boxes_cxcywh) - target).abs().mean() < 0.03


def test_wrong_targets_are_refused():
    head = build_box_head("point", 4)
    with pytest.raises(ValueError):
        box_loss(head(torch.zeros(1, 4)), torch.rand(2, 4))
    with pytest.raises(ValueError):
        box_loss(head(torch.zeros(1, 4)), torch.tensor([[0.5, 0.5, 0.5, 0.9]]))
    with pytest.raises(ValueError, match="point"):
        build_box_head("points", 4)
    assert isinstance(head, nn.Module)

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


@pytest.mark.parametrize("kind", ["point", "laplace"])
def test_a_head_learns_boxes_and_how_sure_it_is(kind):
    torch.manual_seed(0)
    head = build_box_head(kind, 8, width=32)
    states = torch.randn(64, 8)
    states[:, 7] = (torch.arange(64) % 2).float()
    centre = 0.5 + 0.1 * torch.tanh(states[:, :2])
    noise = torch.randn(64, 2) * 0.1 * states[:, 7:8]
    target = torch.cat([centre + noise - 0.1, centre + noise + 0.1], dim=1)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(150):
        loss = sum(box_loss(head(states), target).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prediction = head(states)
    even = (cxcywh_to_xyxy(prediction.boxes_cxcywh) - target).abs()[::2]
    assert even.mean() < 0.03
    if kind == "laplace":
        assert prediction.std[1::2].mean() > 1.5 * prediction.std[::2].mean(), "noisy boxes get a wider spread"


def test_wrong_targets_are_refused():
    head = build_box_head("point", 4)
    with pytest.raises(ValueError, match="2 targets"):
        box_loss(head(torch.zeros(1, 4)), torch.rand(2, 4))
    with pytest.raises(ValueError, match="no area"):
        box_loss(head(torch.zeros(1, 4)), torch.tensor([[0.5, 0.5, 0.5, 0.9]]))
    with pytest.raises(ValueError, match="point, laplace"):
        build_box_head("points", 4)
    assert isinstance(head, nn.Module)

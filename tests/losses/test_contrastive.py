"""Contrastive losses: multi-positive targets and the sigmoid loss by hand. Recorded two-rank losses: tests/tasks."""

import math

import pytest
import torch
from closeness import LAYER, assert_close
from golden_files import SMALL
from safetensors.torch import load_file
from torch.nn import functional as F

from unimed.losses.contrastive import MAX_LOG_SCALE, clip_loss, siglip_loss


def features(count=5, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(count, dim, generator=generator), dim=-1) for _ in range(2)]


def test_recorded_joined_loss():
    t = load_file(SMALL / "unimed_clip" / "dist_loss_ws2.safetensors")
    image = torch.cat([t["rank0.image_features"], t["rank1.image_features"]]).requires_grad_()
    text = torch.cat([t["rank0.text_features"], t["rank1.text_features"]]).requires_grad_()
    scale = torch.tensor(10.0, requires_grad=True)
    loss = clip_loss(image, text, scale)
    loss.backward()
    assert float(loss) == pytest.approx(float(t["full.loss"]), rel=LAYER)
    for mine, theirs in ((image.grad, "full.gimg"), (text.grad, "full.gtxt"), (scale.grad, "full.gscale")):
        assert_close(mine, t[theirs], relative=LAYER)


def test_equal_captions_share_the_target():
    image, text = features()
    groups = torch.tensor([0, 1, 2, 3, 4])
    scale = torch.tensor(5.0)
    assert float(clip_loss(image, text, scale, groups)) == pytest.approx(
        float(clip_loss(image, text, scale)), rel=LAYER
    )
    shared = clip_loss(image, text, scale, torch.tensor([0, 0, 2, 3, 4]))
    logits, targets = 5 * image @ text.T, torch.eye(5)
    targets[:2, :2] = 0.5
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    assert float(shared) == pytest.approx(float(expected), rel=LAYER)
    assert abs(float(shared) - float(clip_loss(image, text, scale))) > 1e-3


def test_sigmoid_loss_by_hand():
    image, text = features(3)
    loss = float(siglip_loss(image, text, torch.tensor(10.0), torch.tensor(-10.0)))
    logits = (10 * image @ text.T - 10).tolist()
    by_hand = sum(math.log1p(math.exp(-(1 if i == j else -1) * logits[i][j])) for i in range(3) for j in range(3)) / 3
    assert loss == pytest.approx(by_hand, rel=LAYER)
    from open_clip.loss import SigLipLoss

    theirs = SigLipLoss()(image, text, torch.tensor(10.0), torch.tensor(-10.0))
    assert loss == pytest.approx(float(theirs), rel=LAYER)


def test_the_bound_is_a_hundred():
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(100, abs=1e-4)

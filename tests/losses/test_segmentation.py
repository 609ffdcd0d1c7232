import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import SMALL
from safetensors.torch import load_file

from unimed.losses.segmentation import dice_loss, mask_cross_entropy, mask_losses, point_values, sample_points


def test_losses_on_recorded_points_are_the_reference():
    recorded = load_file(SMALL / "unibiomed" / "losses.safetensors")
    predicted = point_values(recorded["pred"], recorded["coords"])
    wanted = point_values(recorded["gt"].float(), recorded["coords"])
    assert_close(predicted, recorded["sampled_pred"], relative=LAYER)
    assert_close(wanted, recorded["sampled_gt"], relative=LAYER)
    assert_close(0.5 * dice_loss(predicted, wanted), recorded["loss_dice_sampled"].squeeze())
    assert_close(2.0 * mask_cross_entropy(predicted, wanted), recorded["loss_mask_sampled"].squeeze())
    full = mask_losses(recorded["pred"], recorded["gt"].float(), points=None)
    # Recorded without the 1e-4 that the published code adds to the number of masks.
    assert_close(0.5 * full["dice"], recorded["loss_dice_full"].squeeze(), relative=MODEL)
    assert_close(2.0 * full["bce"], recorded["loss_mask_full"].squeeze(), relative=MODEL)


def test_sampled_points_lie_where_the_mask_is_unsure():
    ramp = torch.linspace(-8, 8, 64).expand(1, 64, 64)
    points = sample_points(ramp, 200, importance=1.0, generator=torch.Generator().manual_seed(0))
    assert (points[..., 0] - 0.5).abs().mean() < 0.2
    assert points.min() >= 0 and points.max() <= 1


def test_perfect_and_empty():
    target = torch.zeros(2, 16, 16)
    target[:, 4:9, 4:9] = 1
    assert mask_losses(40 * target - 20, target, points=None)["dice"] < 1e-3
    logits = torch.zeros(0, 16, 16, requires_grad=True)
    assert mask_losses(logits, torch.zeros(0, 16, 16))["bce"].item() == 0

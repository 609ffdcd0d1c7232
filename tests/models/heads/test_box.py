import pytest
import torch
from closeness import LAYER, assert_close
from golden_files import SMALL
from safetensors.torch import load_file
from torch import nn

from unimed.losses.box import box_loss
from unimed.models.heads.box import combine_draws
from unimed.models.heads.box_coordinates import cxcywh_to_xyxy, paired_giou, paired_iou, xyxy_to_cxcywh
from unimed.models.heads.box_heads import box_heads, build_box_head

GOLDEN = SMALL / "umedground"


def published(recorded, prefix):
    """Weights of a recorded three-layer head under our names: ReLUs are modules here."""
    return {
        f"layers.{2 * layer}.{name}": recorded[f"{prefix}layers.{layer}.{name}"]
        for layer in range(3)
        for name in ("weight", "bias")
    }


def test_conversions_are_inverse():
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.9]])
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(corners)), corners)
    assert torch.allclose(xyxy_to_cxcywh(corners), torch.tensor([[0.3, 0.55, 0.4, 0.7]]))


def test_box_geometry_equals_the_recorded_one():
    recorded = load_file(GOLDEN / "box_utils.safetensors")
    first, second = recorded["boxes_a_xyxy"], recorded["boxes_b_xyxy"]
    for ours, name in (
        (cxcywh_to_xyxy(recorded["boxes_a_cxcywh"]), "boxes_a_xyxy"),
        (xyxy_to_cxcywh(first), "a_back_cxcywh"),
        (paired_iou(first, second), "bbox_iou_rowwise_xyxy"),
        (paired_iou(first[:, None], second[None], eps=0), "box_iou_pairwise"),
        (paired_giou(first[:, None], second[None]), "giou_pairwise"),
        (paired_giou(first, second), "giou_rowwise_via_1d"),
    ):
        assert_close(ours, recorded[name], relative=LAYER)
    assert torch.isfinite(paired_giou(torch.zeros(1, 4), torch.zeros(1, 4))).all()


@pytest.mark.parametrize("name", ["", "llava_head_", "drop_head_"])
def test_published_heads(name):
    recorded = load_file(GOLDEN / "heads.safetensors")
    head = build_box_head("point", 64)
    head.load_state_dict(published(recorded, f"{name}sd."))
    states = recorded["x"].clone().requires_grad_()
    if name:
        expected = recorded["llava_head_out_raw" if "llava" in name else "drop_head_eval_out_raw"]
        assert_close(head.raw(states), expected, relative=LAYER)
        return
    assert_close(head.raw(states), recorded["box_logits"], relative=LAYER)
    boxes = head(states).boxes_cxcywh
    assert_close(boxes, recorded["box_cxcywh"], relative=LAYER)
    boxes.square().sum().backward()
    assert_close(states.grad, recorded["grad_x_of_sum_box_sq"], relative=LAYER)


@pytest.mark.parametrize("size", ["", "_big"])
def test_evidential_branches(size):
    recorded = load_file(GOLDEN / "evidential_dead_code.safetensors")
    head = build_box_head("evidential", 64, compat="reference")
    head.load_state_dict({name[3:]: value for name, value in recorded.items() if name.startswith("sd.")})
    evidence = head(recorded[f"x{size}"]).evidence
    for name in ("gamma", "v", "alpha", "beta"):
        assert_close(evidence[name], recorded[name + size], relative=LAYER)


def test_spread_of_hypotheses_is_the_recorded_one_phrase_by_phrase():
    recorded = load_file(GOLDEN / "losses.safetensors")
    prediction = combine_draws(recorded["stats.all_boxes"][:, None])
    torch.testing.assert_close(prediction.boxes_cxcywh[0], recorded["stats.mean_box"])
    torch.testing.assert_close(prediction.hypotheses[0].var(dim=0), recorded["stats.uncertainty_var"])
    with pytest.raises(ValueError, match="at least 2"):
        combine_draws(torch.rand(1, 3, 4))


@pytest.mark.parametrize("kind", box_heads())
@pytest.mark.parametrize("tokens", [False, True])
def test_every_head_learns_boxes(kind, tokens):
    torch.manual_seed(0)
    options = {"tokens": True} if tokens and box_heads()[kind].reads_tokens else {}
    head = build_box_head(kind, 16, **options)
    states = torch.randn(64, 16)
    centre = 0.5 + 0.1 * torch.tanh(states[:, :2])
    target = torch.cat([centre - 0.1, centre + 0.1], dim=1)
    inputs = states[:, None] + torch.randn(4, 16) if tokens else states
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    first = None
    for _ in range(150):
        losses = box_loss(head(inputs), target)
        loss = sum(losses.values())
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prediction = head(inputs)
    assert loss.item() < first
    # The published weights of umhp teach the worst hypothesis; queries and tokens make the task harder.
    limit = 0.03 if kind in ("point", "laplace") else 0.06
    assert (prediction.boxes_xyxy - target).abs().mean() < limit
    if kind == "point":
        assert prediction.std is None and prediction.uncertainty() is None
    else:
        assert prediction.std.shape == (64, 4) and (prediction.std > 0).all()
        assert prediction.select(slice(0, 3)).uncertainty().shape == (3,)


def test_a_trained_spread_knows_which_boxes_are_hard():
    torch.manual_seed(0)
    hard = torch.arange(400) % 2 == 1
    states = torch.stack([hard.float(), torch.ones(400)], dim=1)
    noise = torch.randn(400, 2) * torch.where(hard, 0.08, 0.01)[:, None]
    target = torch.cat([0.4 + noise, 0.6 + noise], dim=1)
    for kind in ("laplace", "laplace_mixture", "evidential"):
        head = build_box_head(kind, 2, **({"width": 32} if kind == "laplace" else {}))
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
        for _ in range(200):
            loss = sum(box_loss(head(states), target).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        doubt = head(states).uncertainty().detach()
        assert doubt[hard].mean() > 1.5 * doubt[~hard].mean(), kind


def test_what_cannot_be_built_or_compared_is_refused():
    head = build_box_head("point", 4)
    with pytest.raises(ValueError, match="1 predicted boxes for 2"):
        box_loss(head(torch.zeros(1, 4)), torch.rand(2, 4))
    with pytest.raises(ValueError, match="no area"):
        box_loss(head(torch.zeros(1, 4)), torch.tensor([[0.5, 0.5, 0.5, 0.9]]))
    with pytest.raises(ValueError, match="NaN"):
        box_loss(head(torch.zeros(1, 4)), torch.tensor([[0.5, 0.5, float("nan"), 0.9]]))
    with pytest.raises(ValueError, match="marginn"):
        box_loss(head(torch.zeros(1, 4)), torch.tensor([[0.1, 0.5, 0.5, 0.9]]), {"marginn": 1})
    with pytest.raises(ValueError, match="point"):
        build_box_head("points", 4)
    with pytest.raises(ValueError, match="does not take"):
        build_box_head("point", 4, hypotheses=3)
    with pytest.raises(ValueError, match="at least 2"):
        build_box_head("mhp", 4, hypotheses=1)
    with pytest.raises(ValueError, match="as many decoder tokens"):
        build_box_head("mhp", 4)(torch.zeros(1, 2, 4))
    assert isinstance(head, nn.Module)


@pytest.mark.parametrize("kind", ["point", "laplace", "mhp"])
def test_units_of_small_heads_do_not_die(kind):
    """A state far on the negative side of every unit still has a gradient."""
    grown = {}
    for activation in ("relu", "gelu"):
        torch.manual_seed(0)
        head = build_box_head(kind, 16, activation=activation)
        with torch.no_grad():
            head.layers[0].bias.fill_(-3.0)
        head(torch.randn(8, 16) * 0.1).boxes_xyxy.sum().backward()
        grown[activation] = float(head.layers[0].weight.grad.abs().sum())
    assert grown["relu"] == 0 < grown["gelu"]
    with pytest.raises(ValueError, match="relu, gelu"):
        build_box_head(kind, 16, activation="tanh")

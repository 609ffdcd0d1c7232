"""Published box losses against recordings, our own against their definitions."""

import pytest
import torch
from closeness import LAYER, assert_close
from golden_files import SMALL
from safetensors.torch import load_file

from unimed.losses import box_published
from unimed.losses.box import box_loss, mixture_nll, nig_nll, nig_regularizer
from unimed.losses.matching import match_targets
from unimed.models.heads.box import BoxPrediction
from unimed.models.heads.box_heads import build_box_head

GOLDEN = SMALL / "umedground"


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "losses.safetensors")


def hypotheses(recorded):
    return [recorded[f"pred{i}"].clone().requires_grad_() for i in range(3)]


@pytest.mark.parametrize("kind", ["mhp", "umhp"])
def test_published_multi_hypothesis_losses_and_gradients(recorded, kind):
    boxes = hypotheses(recorded)
    total = sum(box_published.image_losses(kind, boxes, recorded["gt_padded"]).values())
    total.backward()
    assert_close(total.detach(), recorded[f"{kind}_full.total"], relative=LAYER)
    for index, box in enumerate(boxes):
        assert_close(box.grad, recorded[f"{kind}_full.grad.p{index}"], relative=LAYER)


@pytest.mark.parametrize("name", ["vg_single", "vg_multi3", "vg_raw_negative_w"])
def test_published_first_box_loss(recorded, name):
    given = {"vg_single": recorded["pred0"][:1], "vg_multi3": recorded["pred0"]}
    predicted = given.get(name, recorded["raw_llava_pred"]).clone().requires_grad_()
    target = recorded["gt_padded"].clone().requires_grad_()
    losses = box_published.first_box_loss(predicted, target)
    sum(losses.values()).backward()
    assert_close(losses["l1"].detach(), recorded[f"{name}.loss_bbox"], relative=LAYER)
    assert_close(losses["giou"].detach(), recorded[f"{name}.loss_giou"], relative=LAYER)
    assert_close(predicted.grad, recorded[f"{name}.grad.p"], relative=LAYER)
    assert_close(target.grad, recorded[f"{name}.grad.t"], relative=LAYER)


@pytest.mark.parametrize(("name", "weight"), [("vg_batch_baseline", 1.0), ("evi_vg", 0.01)])
def test_published_losses_over_all_boxes(recorded, name, weight):
    boxes = load_file(GOLDEN / "box_utils.safetensors")
    predicted, target = (boxes[f"boxes_{side}_cxcywh"][:3].clone().requires_grad_() for side in "ab")
    losses = box_published.all_boxes_loss(predicted, target, weight)
    sum(losses.values()).backward()
    assert_close(losses["l1"].detach(), recorded[f"{name}.loss_bbox"], relative=LAYER)
    assert_close(losses["giou"].detach(), recorded[f"{name}.loss_giou"], relative=LAYER)
    assert_close(predicted.grad, recorded[f"{name}.grad.p"], relative=LAYER)
    assert_close(target.grad, recorded[f"{name}.grad.t"], relative=LAYER)


def test_published_diversity_and_statistics(recorded):
    boxes = hypotheses(recorded)
    total = box_published.diversity(boxes)
    total.backward()
    assert_close(total.detach(), recorded["hinge_diversity.total"], relative=LAYER)
    for name, box in zip("abc", boxes, strict=True):
        assert_close(box.grad, recorded[f"hinge_diversity.grad.{name}"], relative=LAYER)
    stacked = recorded["stats_multi.all_boxes"]
    mixed = box_published.mixed_statistics(stacked.split(3))
    torch.testing.assert_close(mixed["mean"][0], recorded["stats_multi.mean_box"])
    torch.testing.assert_close(mixed["variance"][0], recorded["stats_multi.uncertainty_var"])


def test_published_loss_refuses_what_the_released_code_divides_by_zero():
    with pytest.raises(ValueError, match="not padding"):
        box_published.first_box_loss(torch.rand(1, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="no kind"):
        box_published.image_losses("laplace", [torch.rand(1, 4)] * 3, torch.rand(3, 4))


def test_evidential_likelihood_equals_the_recorded_one():
    recorded = load_file(GOLDEN / "nig.safetensors")
    gamma, v, alpha, beta, y = (recorded[f"nig.{name}"] for name in ("gamma", "v", "alpha", "beta", "y"))
    assert_close(nig_nll(gamma, v, alpha, beta, y), recorded["nig.nll"], relative=LAYER)
    assert_close(nig_regularizer(gamma, v, alpha, y), recorded["nig.reg"], relative=LAYER)


def test_mixture_likelihood_equals_torch_distributions():
    torch.manual_seed(0)
    boxes, log_scales, target = 0.3 + 0.2 * torch.rand(5, 3, 4), torch.randn(5, 3, 4), torch.rand(5, 4)
    weights = torch.rand(5, 3).softmax(dim=1)
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)
    components = torch.distributions.Independent(torch.distributions.Laplace(corners, log_scales.exp()), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), components)
    torch.testing.assert_close(mixture_nll(boxes, weights, log_scales, target), -mixture.log_prob(target))


def test_weighted_kinds_reduce_to_their_definition():
    """With one target all kinds must agree with the plain loss of their hypotheses, weighted by hand."""
    target = torch.tensor([[0.2, 0.2, 0.6, 0.6]])
    boxes = torch.tensor([[[0.4, 0.4, 0.4, 0.4], [0.5, 0.4, 0.4, 0.4], [0.4, 0.6, 0.4, 0.4]]])
    plain = [sum(box_loss(BoxPrediction(boxes[:, k]), target).values()) for k in range(3)]

    def total(kind, **fields):
        return sum(box_loss(BoxPrediction(boxes.mean(1), hypotheses=boxes, kind=kind, **fields), target).values())

    torch.testing.assert_close(total("mhp"), 0.95 * plain[0] + 0.025 * (plain[1] + plain[2]))
    # Errors are 0, 0.1 and 0.2, so the exact hypothesis has no weight: it is the worst that learns.
    torch.testing.assert_close(total("umhp"), plain[1] / 3 + 2 * plain[2] / 3)
    chosen = 0.95 * plain[0] + 0.025 * (plain[1] + plain[2]) + 0.1 * torch.log(torch.tensor(3.0))
    torch.testing.assert_close(total("rwta", weights=torch.full((1, 3), 1 / 3)), chosen)


def test_no_box_gives_a_loss_of_zero_with_a_gradient():
    boxes = torch.zeros(0, 4, requires_grad=True)
    loss = sum(box_loss(BoxPrediction(boxes), torch.zeros(0, 4)).values())
    loss.backward()
    assert float(loss) == 0


def test_boxes_of_one_phrase_are_matched_and_phrases_never_mixed():
    a, b, c = ([0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0.1, 0.6, 0.3, 0.9])
    predicted, target = torch.tensor([a, b, c]), torch.tensor([b, a, c])
    assert match_targets(predicted, target, torch.tensor([0, 0, 1])).tolist() == [1, 0, 2]
    assert match_targets(predicted, target, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert match_targets(predicted, torch.tensor([c, a, b]), torch.tensor([7, 7, 7])).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="groups"):
        match_targets(predicted, target, torch.tensor([0]))


def test_options_have_their_former_names_and_those_of_a_kind_are_checked(monkeypatch, caplog):
    from unimed import registry

    monkeypatch.setattr(registry, "_told", set())
    head = build_box_head("mhp", 8)
    states, target = torch.randn(3, 8), torch.tensor([[0.1, 0.2, 0.4, 0.6]]).expand(3, 4)
    former, today = ({name: 0.5} for name in ("main_share", "main_weight"))
    assert box_loss(head(states), target, former) == box_loss(head(states), target, today)
    assert "'main_share' is called 'main_weight' now" in caplog.text
    with pytest.raises(ValueError, match="did you mean 'main_weight'"):
        box_loss(head(states), target, {"main_weigt": 0.5})

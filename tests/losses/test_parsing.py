"""Losses of BiomedParse v2 against the recorded ones, and gradients through the whole model."""

import numpy as np
import pytest
import torch
from closeness import LAYER
from golden_files import SMALL
from models.boltzformer.recorded import Recording, near, v2_model

from unimed.losses.parsing import label_edges, parsing_losses, resize_logits, squared_dice_loss
from unimed.models.checkpoints.biomedparse import rename


@pytest.fixture(scope="module")
def recorded():
    arrays = np.load(SMALL / "biomedparse" / "train_loss.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_every_part_equals_the_recording(recorded):
    labels = recorded["labels"].flatten(0, 1)
    losses = parsing_losses(
        recorded["out.pred_gmasks"], recorded["out.object_existence"], labels, recorded["out.edge_masks"]
    )
    present = losses["present"].bool()
    assert present.tolist() == [True, False, True, True]
    for ours, theirs in (("dice", "dice"), ("bce", "bce"), ("edge", "edge")):
        near(losses[ours][present], recorded[f"loss.{theirs}_per_item"][present], LAYER, ours)
        assert (losses[ours][~present] == 0).all()
    near(losses["existence"], recorded["loss.cls_per_item"], LAYER, "existence")
    total = sum(losses[name] for name in ("dice", "bce", "edge", "existence")).mean()
    assert float(total) == pytest.approx(float(recorded["loss.total"]), rel=LAYER)
    assert torch.equal(label_edges(labels), recorded["edge_targets"][:, 0].bool())


def test_gradients_of_the_whole_model_equal_the_recording():
    recording, model = Recording("v2_2d_train_loss.npz"), v2_model()
    output = model(
        recording["image"].float(), recording["input_ids"], recording["attention_mask"], draws=recording.draws()
    )
    labels = recording["labels"].flatten(0, 1)
    losses = parsing_losses(output.masks, output.existence, labels, output.edges)
    total = sum(losses[name] for name in ("dice", "bce", "edge", "existence")).mean()
    near(total, recording["loss.total"].float(), name="loss")
    total.backward()
    parameters, compared = dict(model.named_parameters()), 0
    for name in recording.tensors:
        if name.startswith("grad."):
            ours = next(iter(rename({name.removeprefix("grad."): torch.empty(3)})))
            near(parameters[ours].grad, recording[name], name=name)
            compared += 1
    assert compared == 10
    # What the reference leaves without gradient is no parameter here.
    untouched = [next(iter(rename({name: torch.empty(3)}))) for name in recording.tensors["params_without_grad"]]
    assert not set(untouched) & set(parameters)
    assert all(parameter.grad is not None for parameter in parameters.values())


def test_touching_instances_have_an_edge_between_them():
    labels = torch.zeros(1, 6, 8, dtype=torch.int)
    labels[:, :, :4], labels[:, :, 4:] = 1, 2
    edges = label_edges(labels)
    assert edges[0, :, 3:5].all() and edges.sum() == 12
    assert not label_edges((labels > 0).int()).any()


def test_without_edges_and_targets():
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    losses = parsing_losses(logits, torch.zeros(2, 1), torch.zeros(2, 16, 16, dtype=torch.int))
    assert float(losses["dice"].sum() + losses["bce"].sum() + losses["edge"].sum()) == 0
    assert torch.allclose(losses["existence"], torch.full((2,), 2.0).log())
    perfect = squared_dice_loss(torch.full((1, 4, 4), 20.0), torch.ones(1, 4, 4))
    assert float(perfect) < 1e-6
    assert resize_logits(logits, (8, 8)) is logits

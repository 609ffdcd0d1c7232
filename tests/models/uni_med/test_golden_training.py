"""Six recorded optimiser steps of the published trainer, over all tasks."""

import json

import pytest
import torch
from closeness import LAYER, MODEL, assert_close
from golden_files import SMALL, tensors
from models.uni_med.recorded import batch_from, processor, recorded_model, renamed

from unimed.registry import TASKS
from unimed.structures import task_of as named

RUN = json.loads((SMALL / "uni_med" / "train" / "run.json").read_text())


def task_of(tmp_path, compat="reference"):
    recorded_model().save_pretrained(tmp_path)
    task = TASKS.build(dict(type="GroundingTask", model=str(tmp_path), scores="benchmarks", compat=compat))
    return task.train()


def batch_of_step(step, images):
    rows = [([q], [a]) for q, a in zip(step["instruction_input"], step["answer"], strict=True)]
    batch = batch_from(processor(), rows, images[step["img"] or []])
    none = torch.zeros(0)
    batch |= {"tasks": [named(step["task"])] * len(rows), "presence": none, "masks": none}
    return batch | {"boxes_xyxy": none.reshape(0, 4), "box_groups": []}


def published_name(name):
    name = name.replace("backbone.lm.", "llm_model.base_model.model.").replace("connector.projector", "moe_layers")
    return name.replace("connector.", "")


def test_gradients_of_the_first_step(tmp_path):
    task, step = task_of(tmp_path), RUN["steps"][0]
    images = tensors("uni_med", "full", "io.safetensors")["images"]
    loss = task(batch_of_step(step, images))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(step["loss"], rel=LAYER)
    learning = [p for p in task.model.parameters() if p.requires_grad]
    total = torch.stack([p.grad.norm() for p in learning if p.grad is not None]).norm()
    assert float(total) == pytest.approx(step["grad_norm_total"], rel=MODEL)  # the adapters are in it
    compared = 0
    for name, parameter in task.model.named_parameters():
        if not parameter.requires_grad:
            continue
        published = published_name(name)
        if published in step["params_without_grad"]:
            assert parameter.grad is None, name
        elif published in step["grad_norms"]:
            assert float(parameter.grad.norm()) == pytest.approx(step["grad_norms"][published], rel=MODEL), name
            compared += 1
    assert compared == len(step["grad_norms"])


def test_gradients_are_slopes(tmp_path):
    """Along a random direction of all weights that learn, in double precision: the loss rises as the gradient says."""
    task, step = task_of(tmp_path).double(), RUN["steps"][0]
    batch = batch_of_step(step, tensors("uni_med", "full", "io.safetensors")["images"].double())
    task(batch)["loss"].backward()
    torch.manual_seed(0)
    learning = {n: p for n, p in task.model.named_parameters() if p.requires_grad and p.grad is not None}
    # Norms and losses are in single precision all the same, so that a small slope needs a long way.
    for word, size in {"lora_A": 1e-3, "lora_B": 1e-3, "projector": 1e-3, "router": 1e-3, "task_tokens": 0.1}.items():
        part = [p for n, p in learning.items() if word in n]
        directions = [torch.randn_like(p) for p in part]
        slope = float(sum((p.grad * d).sum() for p, d in zip(part, directions, strict=True)))
        losses = []
        for way in (size, -2 * size, size):
            with torch.no_grad():
                for parameter, direction in zip(part, directions, strict=True):
                    parameter.add_(direction, alpha=way)
                losses.append(float(task(batch)["loss"]))
        assert part and (losses[0] - losses[1]) / (2 * size) == pytest.approx(slope, rel=2e-2), word


def test_parameters_without_decay_are_those_of_the_published_trainer(tmp_path):
    decayed, plain = task_of(tmp_path).train_parameters()
    assert (len(decayed["params"]), len(plain["params"])) == (RUN["decayed"], RUN["plain"])
    assert plain["weight_decay"] == 0.0


def test_six_steps(tmp_path):
    images = tensors("uni_med", "full", "io.safetensors")["images"]
    after = tensors("uni_med", "train", "train_run.safetensors")
    task = task_of(tmp_path)
    optimizer = torch.optim.AdamW(task.train_parameters(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    losses = []
    for step in RUN["steps"]:
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        loss = task(batch_of_step(step, images))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(abs(loss.item() - step["loss"]) / step["loss"])
    state = {renamed(f"{n}"): n for n in after}
    mine = dict(task.model.named_parameters())
    worst, compared = 0.0, 0
    for name in after:
        own = renamed(name.removeprefix("after."))
        if own in mine:
            # Six steps move a weight by far more than this; Adam blows up the rounding of small gradients.
            worst = max(worst, assert_close(mine[own], after[name], name, 5 * MODEL))
            compared += 1
    weight = mine["connector.router.fc1.weight"]
    assert float(weight.norm()) == pytest.approx(float(after["after.router.fc1.weight_norm"]), rel=MODEL)
    print(f"largest differences: loss {max(losses)}, weights {worst} over {compared} of {len(state)} tensors")
    assert compared == len(after) - 2
    assert max(losses) < MODEL

"""Six recorded optimiser steps of the published trainer, over all tasks."""

import json

import pytest
import torch
from golden_files import SMALL, large
from models.uni_med.recorded import processor, recorded_model, renamed
from safetensors.torch import load_file

from unimed.tasks.multi_task import MultiTask

RUN = json.loads((SMALL / "uni_med" / "train" / "run.json").read_text())


def task_of(tmp_path, compat="reference"):
    recorded_model().save_pretrained(tmp_path)
    task = MultiTask(model=str(tmp_path), compat=compat)
    return task.train()


def batch_of_step(step, images):
    rows = zip(step["instruction_input"], step["answer"], strict=True)
    reader = processor()
    batch = reader.batch([reader.example(q, a, q.count("<ImageHere>")) for q, a in rows])
    used = step["img"] or []
    batch |= {"task": [step["task"]] * len(step["answer"]), "image_task": [step["task"]] * len(used)}
    return batch | ({"pixel_values": images[used]} if used else {})


def published_name(name):
    name = name.replace("language_model.", "llm_model.base_model.model.").replace("connector.projector", "moe_layers")
    return name.replace("connector.", "")


def test_gradients_of_the_first_step(tmp_path):
    task, step = task_of(tmp_path), RUN["steps"][0]
    images = load_file(SMALL / "uni_med" / "full" / "io.safetensors")["images"]
    loss = task(batch_of_step(step, images))["loss"]
    loss.backward()
    assert float(loss) == pytest.approx(step["loss"], abs=1e-5)
    for name, parameter in task.model.named_parameters():
        if not parameter.requires_grad:
            continue
        published = published_name(name)
        if published in step["params_without_grad"]:
            assert parameter.grad is None, name
        elif published in step["grad_norms"]:
            assert float(parameter.grad.norm()) == pytest.approx(step["grad_norms"][published], rel=1e-4, abs=1e-6)


def test_parameters_without_decay_are_those_of_the_published_trainer(tmp_path):
    decayed, plain = task_of(tmp_path).train_parameters()
    assert (len(decayed["params"]), len(plain["params"])) == (RUN["decayed"], RUN["plain"])
    assert plain["weight_decay"] == 0.0


def test_six_steps(tmp_path):
    images = load_file(large("uni_med", "full", "io.safetensors"))["images"]
    after = load_file(large("uni_med", "train", "train_run.safetensors"))
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
        losses.append(abs(float(loss) - step["loss"]))
    state = {renamed(f"{n}"): n for n in after}
    mine = dict(task.model.named_parameters())
    worst, compared = 0.0, 0
    for name in after:
        own = renamed(name.removeprefix("after."))
        if own in mine:
            worst = max(worst, float((mine[own] - after[name]).abs().max()))
            compared += 1
    weight = mine["connector.router.fc1.weight"]
    assert float(weight.norm()) == pytest.approx(float(after["after.router.fc1.weight_norm"]), abs=1e-4)
    print(f"largest differences: loss {max(losses)}, weights {worst} over {compared} of {len(state)} tensors")
    assert compared == len(after) - 2
    assert max(losses) < 1e-5
    assert worst < 1e-5

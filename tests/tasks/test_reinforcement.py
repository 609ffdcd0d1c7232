"""GRPO raises the reward: a model that points in half of its answers learns to point, by the Dice of what it shows."""

import numpy as np
import pytest
import torch
from small_models import TEXTS, tiny_model

from unimed.data.collate.grounded import GroundedCollator
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.registry import TASKS
from unimed.structures import Region, Sample
from unimed.tasks.reinforcement import point_reward, reinforce, text_reward


def sample(number, answer):
    image, mask = np.zeros((32, 32), np.uint8), np.zeros((32, 32), bool)
    mask[6 + number : 20 + number, 8:24] = True
    image[mask] = 200
    pointing = "[SEG]" in answer
    return Sample(
        (image,), Geometry.pixels(), f"s{number}",
        conversation=(("user", "segment the nuclei"), ("assistant", answer)),
        regions=(Region("nuclei", mask=mask, presence=1.0),) if pointing else (),
        labels={"task": "referring" if pointing else "vqa"},
    )  # fmt: skip


def test_rewards_are_our_metrics():
    one = sample(0, "<p> nuclei </p> [SEG].")
    right = Prediction("nuclei.", one.regions)
    assert point_reward(one, right) == 1 and point_reward(one, Prediction("nothing")) == 0
    absent = Sample(one.images, Geometry.pixels(), "a", regions=(Region("cyst", presence=0.0),),
                    labels={"task": "absent"})  # fmt: skip
    assert point_reward(absent, Prediction("no")) == 1 and point_reward(absent, right) == 0
    assert text_reward(one, Prediction("nuclei.")) == 1


def test_the_reward_rises_on_a_small_model():
    pytest.importorskip("trl")
    model = tiny_model()
    task = TASKS.build(dict(type="GroundingTask", model=model)).train()
    right, wrong = "<p> nuclei </p> [SEG].", TEXTS[1]
    batch = GroundedCollator(task.processor)([sample(n, text) for n in range(4) for text in (right, wrong)])
    optimizer = torch.optim.Adam(task.parameters(), 3e-3)
    for _ in range(60):
        task(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    questions = [sample(n, right) for n in range(4)]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("mask_head")}
    options = dict(steps=12, learning_rate=1e-3, generations=8, prompts=2, max_new_tokens=16)
    rewards = reinforce(model, questions, **options)
    first, last = np.mean(rewards[:3]), np.mean(rewards[-3:])
    print(f"mean reward of drawn answers: first three steps {first:.3f}, last three {last:.3f}")
    assert last > first + 0.15, rewards
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    now = model.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in heads.items()), "only the language model learns"


def test_what_cannot_be_trained_is_refused():
    pytest.importorskip("trl")
    for wrong in (dict(samples=[]), dict(generations=1), dict(beta=0.1)):
        options = dict(samples=[sample(0, "[SEG]")]) | wrong
        with pytest.raises(ValueError, match="reinforce needs"):
            reinforce(tiny_model(), **options)

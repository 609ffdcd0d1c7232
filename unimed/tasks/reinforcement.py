"""Reinforcement fine-tuning of grounded models by our own metrics: GRPO (arXiv 2402.03300) through TRL (extra `rl`).

    history = reinforce(model, samples, reward=point_reward, steps=50)

The policy is the language model, which says what is pointed at; the reward of an answer is a metric of what the heads
then show. Answers are drawn by the model's own decoding, so that what is rewarded is what `predict` gives.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from unimed.evaluation.rows import answer_of, box_rows, mask_rows, presence_rows
from unimed.io.result import Prediction
from unimed.metrics.text import token_f1
from unimed.models.grounded.policy import GroundedPolicy
from unimed.structures import Sample, Task

Reward = Callable[[Sample, Prediction], float]


def point_reward(sample: Sample, prediction: Prediction) -> float:
    """Mean Dice of masks and IoU of boxes of an answer, in [0, 1]; for what is not there 1 where nothing is shown."""
    values = [row["dice"] for row in mask_rows(sample, prediction)]
    if sample.task is Task.BOX:
        values += [row["miou"] for row in box_rows(sample, prediction)]
    absent = [row for row in presence_rows(sample, prediction) if not row["present"]]
    values += [float(row["predicted_voxels"] == 0) for row in absent]
    return float(np.nanmean(values)) if values else 0.0


def text_reward(sample: Sample, prediction: Prediction) -> float:
    """Token F1 of the words of an answer, in [0, 1]."""
    return token_f1(prediction.text, answer_of(sample))


def reinforce(
    model,
    samples: Sequence[Sample],
    reward: Reward = point_reward,
    *,
    steps: int = 50,
    learning_rate: float = 1e-5,
    generations: int = 8,
    prompts: int = 2,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    beta: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Fine-tune the language model of a grounded model in place.

    Args:
        model: `GroundedMLLM`.
        samples: questions about one 2D image each, with what the reward compares answers with.
        reward: of an answer, higher is better.
        generations: answers drawn for each question, which are compared with one another; at least 2.
        prompts: questions per step.
        temperature: answers are drawn at.
        beta: weight of the divergence from the model at the start; only 0 is possible here, as the reference would be
            loaded anew by its name.

    Returns:
        mean reward of the answers drawn in each step.

    Raises:
        ImportError: TRL is not installed.
        ValueError: no sample, fewer than 2 generations, a `beta` other than 0, or a backbone with images of any size.
    """
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise ImportError("reinforcement needs TRL; install unimed[rl]") from error
    if not samples or generations < 2 or beta != 0:
        raise ValueError(
            f"reinforce needs samples, at least 2 generations and beta=0, got {len(samples)}, {generations}, {beta}"
        )
    written = [model.processor.write(sample) for sample in samples]
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    policy, history = GroundedPolicy(model), []
    draw = torch.Generator(device=model.device).manual_seed(seed)

    def rollout(asked: Sequence[str], trainer) -> dict:
        chosen = [int(number) for number in asked]
        rows: dict[int, object] = {}
        questions = [written[number].conversation[0][1] for number in chosen]
        images = [written[number].images[0] for number in chosen]
        given = [written[number].written.given for number in chosen]
        answers = model.predict_batch(
            images, questions, given, temperature=temperature, generator=draw, max_new_tokens=max_new_tokens,
            watch=rows.__setitem__,
        )  # fmt: skip
        model.train()
        values = [reward(samples[number], answer) for number, answer in zip(chosen, answers, strict=True)]
        history.append(float(np.mean(values)))
        prompt_ids = [
            policy.prompt_ids(number, image, question, regions)
            for number, image, question, regions in zip(chosen, images, questions, given, strict=True)
        ]
        completions = [list(rows[place].ids) for place in range(len(chosen))]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None, "value": values}

    def rewarded(prompts, completions, value, **_) -> list[float]:
        return list(value)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of TRL: that custom answers are experimental there
        options = GRPOConfig(
            output_dir=folder, max_steps=steps, learning_rate=learning_rate, num_generations=generations,
            per_device_train_batch_size=generations * prompts, max_completion_length=max_new_tokens,
            temperature=temperature, beta=beta, seed=seed, report_to=[], save_strategy="no", logging_strategy="no",
            gradient_checkpointing=False, bf16=False, disable_tqdm=True, use_cpu=model.device.type == "cpu",
            lr_scheduler_type="constant", scale_rewards="group", remove_unused_columns=False,
        )  # fmt: skip
        numbers = Dataset.from_dict({"prompt": [str(number) for number in range(len(samples))]})
        trainer = GRPOTrainer(
            model=policy, reward_funcs=rewarded, args=options, train_dataset=numbers,
            processing_class=model.processor.tokenizer, rollout_func=rollout,
        )  # fmt: skip
        trainer.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(before[name])
    model.eval()
    return history

"""Samples of any data set to the batch Uni-Med trains on; a batch may mix tasks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from unimed.io.images import load as load_image
from unimed.registry import COLLATORS
from unimed.structures import Sample

#: Names other data sets give to the tasks of Uni-Med.
TASK_NAMES = {"classification": "cls", "report": "caption", "box": "refer", "region": "identify"}
TASKS = ("qa", "vqa", "refer", "identify", "caption", "cls")


class TaskNameError(ValueError):
    """A sample whose task is none of Uni-Med's."""


def task_of(sample: Sample, names: Mapping[str, str] = TASK_NAMES) -> str:
    """The Uni-Med task of a sample, by `labels["task"]`.

    Raises:
        TaskNameError: it has none, or one Uni-Med does not know.
    """
    given = str(sample.labels.get("task", ""))
    task = names.get(given, given)
    if task not in TASKS:
        raise TaskNameError(
            f"sample {sample.sample_id}: task {given!r} is not known; choose one of: {', '.join((*TASKS, *names))}"
        )
    return task


@COLLATORS.register_module()
class UniMedCollator:
    """Ids, images and the task of every sample.

    Args:
        processor: a `UniMedProcessor`.
        task_names: changes to `TASK_NAMES`.

    Returns of a call: input_ids, attention_mask, labels [B, L]; `pixel_values` [I, 3, S, S] where there are images;
    `image_task`, the task of each image; `task`, that of each sample; `sample_ids`.
    """

    def __init__(self, processor=None, task_names: Mapping[str, str] | None = None):
        self.processor = processor
        self.task_names = TASK_NAMES | dict(task_names or {})

    def __call__(self, samples: list[Sample]) -> dict:
        examples, pixels, image_tasks, tasks = [], [], [], []
        for sample in samples:
            task = task_of(sample, self.task_names)
            questions = [text for role, text in sample.conversation if role == "user"]
            answers = [text for role, text in sample.conversation if role == "assistant"]
            first = self.processor.instruction(task, questions[0], len(sample.images))
            if len(questions) == 1:
                examples.append(self.processor.example(first, answers[0], len(sample.images)))
            else:
                later = [f"[{task}] {text}" for text in questions[1:]]
                examples.append(self.processor.conversation([first, *later], answers, len(sample.images)))
            pixels += [self.processor.pixels(_rgb(sample, image)) for image in sample.images]
            image_tasks += [task] * len(sample.images)
            tasks.append(task)
        batch = self.processor.batch(examples)
        batch |= {"task": tasks, "image_task": image_tasks, "sample_ids": [sample.sample_id for sample in samples]}
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        return batch


def _rgb(sample: Sample, image: np.ndarray) -> np.ndarray:
    return load_image(image, modality=sample.modality, name=f"sample {sample.sample_id}").rgb

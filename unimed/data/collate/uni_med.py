"""Samples of any data set to the batch Uni-Med trains on; a batch may mix tasks."""

from __future__ import annotations

import numpy as np
import torch

from unimed.registry import COLLATORS
from unimed.structures import Sample


@COLLATORS.register_module()
class UniMedCollator:
    """Ids, images and the task of every sample.

    Args:
        processor: a `UniMedProcessor`.

    Returns of a call: input_ids, attention_mask, labels [B, L]; `pixel_values` [I, 3, S, S] where there are images;
    `image_task`, the task of each image; `task`, that of each sample; `sample_ids`.
    """

    def __init__(self, processor=None):
        self.processor = processor

    def write(self, sample: Sample) -> Sample:
        """The sample in the words of Uni-Med; wordings are drawn by the global `random`."""
        return self.processor.dialect.write(sample)

    def __call__(self, samples: list[Sample]) -> dict:
        examples, pixels, image_tasks, tasks = [], [], [], []
        for sample in samples:
            sample = self.write(sample)
            task = sample.task.short
            questions = [text.removeprefix(f"[{task}] ") for role, text in sample.conversation if role == "user"]
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
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"sample {sample.sample_id}: images are HxW or HxWx3 uint8, got {image.dtype} {image.shape}")
    return rgb

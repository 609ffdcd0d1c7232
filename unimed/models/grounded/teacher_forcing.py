"""Boxes of a given answer: the teacher-forced protocol in which uMedGround's numbers were published."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from unimed.io.images import load as load_image
from unimed.io.result import Prediction
from unimed.models.grounded.generation import Generated
from unimed.structures import Region


@torch.no_grad()
def teacher_forced(model, images: Sequence, questions: Sequence[str], answers: Sequence[str]) -> list[Prediction]:
    """Boxes where the TRUE answer holds [BOX]; its phrases are the truth's, so only boxes can be scored.

    The model reads the answer it is asked for. Numbers of this protocol are not what a user gets from `predict`.

    Args:
        images: paths, PIL images or arrays; one image at a time is computed.
        answers: with their markers, as in training.
    """
    was_training = model.training
    model.eval()
    predictions = []
    try:
        for image, question, answer in zip(images, questions, answers, strict=True):
            begin = time.perf_counter()
            source = load_image(image)
            processor, size = model.processor, source.rgb.shape[:2]
            inputs = processor(images=source, text=[("user", question), ("assistant", answer)]).to(model.device)
            features = model.mask_head.encode(inputs.pop("mask_pixel_values"))
            output = model(**inputs, mask_features=features, return_logits=False)
            row, labels = inputs["input_ids"], inputs["labels"]
            label_ids = labels[labels != -100].tolist()
            places = (row == model.config.box_token_id) & (labels != -100)
            states = list(model.prompting_states(output.hidden, places))
            generated = Generated(
                label_ids, states, [model.config.box_token_id] * len(states), [1.0] * len(states), True
            )
            parsed = processor.parse(label_ids)
            boxes = model._boxes_of(generated, features, size)
            regions = [
                Region(one.phrase or question[:200], box_xyxy_px=box, confidence=sure, box_std_px=std,
                       phrase_span=one.span)
                for one, (box, std, sure) in zip(parsed.targets, boxes, strict=True)
                if box[2] > box[0] and box[3] > box[1]
            ]  # fmt: skip
            spent = {"teacher_forced": time.perf_counter() - begin}
            predictions.append(
                Prediction(parsed.text, tuple(regions), source.geometry, spent, model._reference(), image=source.source)
            )
    finally:
        model.train(was_training)
    return predictions

"""What one teacher-forced pass of a grounded model gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput

from unimed.models.heads.mask import MaskOutput


@dataclass
class GroundedOutput(ModelOutput):
    """What one teacher-forced pass gives.

    `loss` is the language loss where labels were given; `hidden` [B, L, D] the states after the final norm; `masks`
    belong to the [SEG] tokens of the batch in reading order (`box_masks` are those of given boxes alone,
    `guided_masks` of words and boxes) and `boxes` (and `language_boxes` [N, 4], raw) to its [BOX] tokens;
    `presence_logits` to the [SEG] tokens; `auxiliary_loss` comes from the connector. `sample_losses` [N] is the mean
    over the label tokens of each sample, `routing` [T, M, E] the weights of the experts for the image tokens,
    `image_tokens` [T, N, D] those of all encoded images.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    masks: MaskOutput | None = None
    box_masks: MaskOutput | None = None
    guided_masks: MaskOutput | None = None
    boxes: object | None = None
    language_boxes: torch.Tensor | None = None
    presence_logits: torch.Tensor | None = None
    auxiliary_loss: torch.Tensor | None = None
    sample_losses: torch.Tensor | None = None
    routing: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None

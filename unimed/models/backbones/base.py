"""Contract of a backbone: images and text of a language model behind one face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Backbone(nn.Module):
    """What a `GroundedMLLM` asks of its backbone: image tokens in, hidden states out.

    Registered in `BACKBONES` under the `model_type` of its transformers configuration, and built as `cls(config)`.
    `processor_options` lets `build_on_parts` start a grounded model from a published folder of this family.
    """

    #: Whether images and text go through the model's own forward pass together (`NativeBackbone`).
    native: bool = False
    #: Visual tokens of one image before the connector, where their number is always the same; else None.
    vision_tokens: int | None = None

    @classmethod
    def processor_options(cls, config, folder: Path) -> dict[str, Any]:
        """Arguments of `GroundedProcessor` for a published folder: chat template, image tokens, tiles, mean and std.

        Raises:
            NotImplementedError: this family cannot be started from a folder.
        """
        raise NotImplementedError(f"{cls.__name__} names no options of a processor")

    @property
    def hidden_dim(self) -> int:
        """Width D of the language model."""
        raise NotImplementedError

    @property
    def vision_dim(self) -> int:
        """Width Dv of what `vision_features` gives."""
        raise NotImplementedError

    @property
    def language_model(self) -> nn.Module:
        """Decoder layers and final norm: `inputs_embeds` to hidden states, with `layers` and `get_input_embeddings`."""
        raise NotImplementedError

    @property
    def lm_head(self) -> nn.Module:
        """Hidden states to logits."""
        raise NotImplementedError

    def drop_projector(self) -> None:
        """Forget the projector of the model: a connector of ours takes its place."""

    def vision_features(self, pixels: torch.Tensor, image_grid_thw: torch.Tensor | None = None) -> torch.Tensor:
        """[T, 3, H, W] -> [T, N, Dv], before any projector."""
        raise NotImplementedError

    def image_tokens(self, pixels: torch.Tensor, image_grid_thw: torch.Tensor | None = None) -> torch.Tensor:
        """[T, 3, H, W] -> [T, N, D] by the model's own projector."""
        raise NotImplementedError

    def position_ids(self, input_ids, attention_mask, image_grid_thw, images_per_row=None) -> torch.Tensor | None:
        """Positions of the tokens where they are more than their order; None where they are not."""
        return None

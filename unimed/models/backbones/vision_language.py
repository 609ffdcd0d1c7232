"""One face over transformers' image-text models: image tokens in, hidden states out."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


class VisionLanguageBackbone(nn.Module):
    """Adapter over `InternVLForConditionalGeneration`, `LlavaForConditionalGeneration` and their like.

    These share one shape: `model.vision_tower`, `model.multi_modal_projector`, `model.language_model`, `lm_head`.

    Args:
        config: configuration of the transformers model.
    """

    def __init__(self, config):
        super().__init__()
        self.vlm = AutoModelForImageTextToText.from_config(config)
        self.text_config = config.get_text_config()

    @property
    def hidden_dim(self) -> int:
        return self.text_config.hidden_size

    @property
    def vision_dim(self) -> int:
        """Width of what `vision_features` gives."""
        width = self.vlm.config.vision_config.hidden_size
        ratio = getattr(self.vlm.config, "downsample_ratio", None)
        return width if ratio is None else width * int(1 / ratio) ** 2

    def drop_projector(self):
        """Forget the projector of the model: a connector of ours takes its place."""
        self.vlm.model.multi_modal_projector = nn.Identity()

    def vision_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[T, 3, H, W] -> [T, N, Dv], before any projector."""
        model = self.vlm.model
        if hasattr(model, "pixel_shuffle"):
            features = model.vision_tower(pixel_values=pixels.to(self.vlm.dtype)).last_hidden_state[:, 1:]
            side = int(features.shape[1] ** 0.5)
            features = features.reshape(len(features), side, side, -1)
            features = model.pixel_shuffle(features, scale_factor=self.vlm.config.downsample_ratio)
            return features.reshape(len(features), -1, features.shape[-1])
        layer = self.vlm.config.vision_feature_layer
        outputs = model.vision_tower(pixels.to(self.vlm.dtype), output_hidden_states=True)
        features = outputs.hidden_states[layer]
        return features[:, 1:] if self.vlm.config.vision_feature_select_strategy == "default" else features

    def image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """[T, 3, H, W] -> [T, N, D] by the model's own projector."""
        return self.vlm.model.multi_modal_projector(self.vision_features(pixels))

    @property
    def language_model(self):
        return self.vlm.model.language_model

    @property
    def lm_head(self):
        return self.vlm.lm_head


class LanguageBackbone(nn.Module):
    """A causal language model alone; its image tokens come from the mask head's encoder through a connector."""

    def __init__(self, config):
        super().__init__()
        self.lm = AutoModelForCausalLM.from_config(config)

    @property
    def hidden_dim(self) -> int:
        return self.lm.config.hidden_size

    @property
    def language_model(self):
        return self.lm.model

    @property
    def lm_head(self):
        return self.lm.lm_head


def build_backbone(config) -> VisionLanguageBackbone | LanguageBackbone:
    """The adapter that fits a transformers configuration: with a vision part or without."""
    return VisionLanguageBackbone(config) if hasattr(config, "vision_config") else LanguageBackbone(config)

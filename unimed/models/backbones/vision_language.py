"""One face over transformers' image-text models: image tokens in, hidden states out."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


class VisionLanguageBackbone(nn.Module):
    """Adapter over `InternVLForConditionalGeneration`, `LlavaForConditionalGeneration` and their like.

    These share one shape: `model.vision_tower`, `model.multi_modal_projector`, `model.language_model`, `lm_head`. The
    language model may be any that transformers builds for them (Qwen2, Qwen3, Llama, Phi-3, ...).

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

    def vision_features(self, pixels: torch.Tensor, image_grid_thw=None) -> torch.Tensor:
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

    def image_tokens(self, pixels: torch.Tensor, image_grid_thw=None) -> torch.Tensor:
        """[T, 3, H, W] -> [T, N, D] by the model's own projector."""
        return self.vlm.model.multi_modal_projector(self.vision_features(pixels))

    def position_ids(self, input_ids, attention_mask, image_grid_thw, images_per_row=None):
        """Places of the tokens where they are more than their order; None where they are not."""
        return None

    @property
    def language_model(self):
        return self.vlm.model.language_model

    @property
    def lm_head(self):
        return self.vlm.lm_head


class QwenVLBackbone(VisionLanguageBackbone):
    """Adapter over Qwen2-VL and Qwen2.5-VL: images in their own aspect ratio, tokens with a place in the picture."""

    @property
    def vision_dim(self) -> int:
        vision = self.vlm.config.vision_config
        # Qwen2-VL calls the width of its tower `embed_dim`; `hidden_size` is then that of the language model.
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        return width * vision.spatial_merge_size**2

    def drop_projector(self):
        self.vlm.model.visual.merger = _Neighbours(self.vision_dim)

    def vision_features(self, pixels: torch.Tensor, image_grid_thw=None) -> torch.Tensor:
        """Patches [P, K] of images with `image_grid_thw` [I, 3] -> [1, N, Dv], without the projector of the model.

        Raises:
            RuntimeError: the projector is still there; it is part of the tower in this family.
        """
        if not isinstance(self.vlm.model.visual.merger, _Neighbours):
            raise RuntimeError("the vision tower of this family ends in its projector; call drop_projector() first")
        return self.image_tokens(pixels, image_grid_thw)

    def image_tokens(self, pixels: torch.Tensor, image_grid_thw=None) -> torch.Tensor:
        """Patches [P, K] of images with `image_grid_thw` [I, 3] -> [1, N, D], image after image, row by row."""
        model = self.vlm.model
        return model.visual(pixels.to(self.vlm.dtype), grid_thw=image_grid_thw).pooler_output[None]

    def position_ids(self, input_ids, attention_mask, image_grid_thw, images_per_row=None):
        """[3, B, L]: frame, row and column of image tokens; their order for text, also for tokens that a region
        repeats, which have a place in the text.

        Args:
            images_per_row: [B], how many of the images each row shows; by default one in each row that shows any, or
                all in the only row.
        """
        if image_grid_thw is None:
            return None
        config = self.vlm.config
        places = input_ids == config.image_token_id
        counts = image_grid_thw.prod(dim=1) // config.vision_config.spatial_merge_size**2
        if images_per_row is None:
            images_per_row = places.any(dim=1).long() if len(input_ids) > 1 else torch.tensor([len(counts)])
        images_per_row = images_per_row.tolist()
        if sum(images_per_row) != len(counts):
            raise ValueError(f"{len(counts)} images, the rows show {sum(images_per_row)}; give images_per_row")
        budget = torch.stack([part.sum() for part in counts.split(images_per_row)]).to(input_ids.device)
        kinds = (places & (places.long().cumsum(dim=1) <= budget[:, None])).int()
        positions, _ = self.vlm.model.get_rope_index(
            input_ids, mm_token_type_ids=kinds, image_grid_thw=image_grid_thw, attention_mask=attention_mask
        )
        return positions


class _Neighbours(nn.Module):
    """Patches that lie together as one vector, without learning: [P, C] -> [P / n, n * C]."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return patches.reshape(-1, self.width)


class LanguageBackbone(nn.Module):
    """A causal language model alone; its image tokens come from the mask head's encoder through a connector."""

    def __init__(self, config):
        super().__init__()
        self.lm = AutoModelForCausalLM.from_config(config)

    @property
    def hidden_dim(self) -> int:
        return self.lm.config.hidden_size

    def position_ids(self, input_ids, attention_mask, image_grid_thw, images_per_row=None):
        return None

    @property
    def language_model(self):
        return self.lm.model

    @property
    def lm_head(self):
        return self.lm.lm_head


#: Families whose vision part cannot be fed with tiles alone, and why.
UNSUPPORTED = {
    "qwen3_vl": "its vision tower also feeds inner layers of the language model (deepstack); use Qwen2.5-VL",
    "qwen3_vl_moe": "its vision tower also feeds inner layers of the language model (deepstack); use Qwen2.5-VL",
}


def build_backbone(config) -> VisionLanguageBackbone | LanguageBackbone:
    """The adapter that fits a transformers configuration: with a vision part or without.

    Raises:
        ValueError: an image-text family of another shape; the message says which shape fits.
    """
    if not hasattr(config, "vision_config"):
        return LanguageBackbone(config)
    if config.model_type in UNSUPPORTED:
        raise ValueError(f"backbone {config.model_type!r} does not fit: {UNSUPPORTED[config.model_type]}")
    if config.model_type in ("qwen2_vl", "qwen2_5_vl"):
        return QwenVLBackbone(config)
    return VisionLanguageBackbone(config)

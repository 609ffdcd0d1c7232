"""Backbones of transformers: adapters over image-text models, and over a causal language model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from unimed.files import read_json
from unimed.models.backbones.base import Backbone
from unimed.models.backbones.native import NativeBackbone
from unimed.registry import BACKBONES, registered

_CLIP = dict(tile_mean=(0.48145466, 0.4578275, 0.40821073), tile_std=(0.26862954, 0.26130258, 0.27577711))


class VisionLanguageBackbone(Backbone):
    """Adapter over `InternVLForConditionalGeneration`, `LlavaForConditionalGeneration` and their like.

    They share one shape: `model.vision_tower`, `model.multi_modal_projector`, `model.language_model`, `lm_head`.
    The language model may be any that transformers builds for them (Qwen2, Qwen3, Llama, Phi-3, ...).

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
        width = self.vlm.config.vision_config.hidden_size
        ratio = getattr(self.vlm.config, "downsample_ratio", None)
        return width if ratio is None else width * int(1 / ratio) ** 2

    def drop_projector(self) -> None:
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

    @property
    def language_model(self):
        return self.vlm.model.language_model

    @property
    def lm_head(self):
        return self.vlm.lm_head


@BACKBONES.register_module("internvl")
class InternVLBackbone(VisionLanguageBackbone):
    """Adapter over InternVL as transformers writes it."""

    @classmethod
    def processor_options(cls, config, folder: Path) -> dict[str, Any]:
        side, patch = _side(config.vision_config.image_size), _side(config.vision_config.patch_size)
        per_side = int(side // patch * config.downsample_ratio)
        return dict(template="qwen_chat", image_token="<IMG_CONTEXT>", tile_size=side, tokens_per_tile=per_side**2)


@BACKBONES.register_module("llava")
class LlavaBackbone(VisionLanguageBackbone):
    """Adapter over LLaVA: CLIP, one tile, Vicuna's chat template."""

    @classmethod
    def processor_options(cls, config, folder: Path) -> dict[str, Any]:
        side, patch = _side(config.vision_config.image_size), _side(config.vision_config.patch_size)
        whole = config.vision_feature_select_strategy != "default"
        return dict(
            template="llava_v1", image_start="", image_token="<image>", image_end="", tile_size=side, max_tiles=1,
            tokens_per_tile=(side // patch) ** 2 + whole, bos=True, **_CLIP,
        )  # fmt: skip


@BACKBONES.register_module(["qwen2_vl", "qwen2_5_vl"])
class QwenVLBackbone(VisionLanguageBackbone):
    """Adapter over Qwen2-VL and Qwen2.5-VL: images in their own aspect ratio, tokens with a place in the image."""

    @classmethod
    def processor_options(cls, config, folder: Path) -> dict[str, Any]:
        vision, file = config.vision_config, folder / "preprocessor_config.json"
        read = read_json(file) if file.is_file() else {}
        size = read.get("size") or {}
        fewest = read.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        most = read.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
        # Sa2VA trains Qwen-VL with at most 2048 tokens an image.
        return dict(
            template="qwen_chat", image_start="<|vision_start|>", image_token="<|image_pad|>",
            image_end="<|vision_end|>", native_pixels=(fewest, min(most, 2048 * 28 * 28)),
            patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, **_CLIP,
        )  # fmt: skip

    @property
    def vision_dim(self) -> int:
        vision = self.vlm.config.vision_config
        # Qwen2-VL calls the width of its tower `embed_dim`; `hidden_size` is then that of the language model.
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        return width * vision.spatial_merge_size**2

    def drop_projector(self):
        self.vlm.model.visual.merger = _Neighbors(self.vision_dim)

    def vision_features(self, pixels: torch.Tensor, image_grid_thw=None) -> torch.Tensor:
        """Patches [P, K] of images with `image_grid_thw` [I, 3] -> [1, N, Dv], without the projector of the model.

        Raises:
            RuntimeError: the projector is still there; it is part of the tower in this family.
        """
        if not isinstance(self.vlm.model.visual.merger, _Neighbors):
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


class _Neighbors(nn.Module):
    """Patches that lie together as one vector, without learning: [P, C] -> [P / n, n * C]."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return patches.reshape(-1, self.width)


class LanguageBackbone(Backbone):
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


def build_backbone(config, native: bool = False) -> Backbone:
    """The adapter of a transformers configuration.

    Args:
        native: take the model's own forward pass also where `BACKBONES` has an adapter of this type. Image-text models
            without an adapter always do; a causal language model alone reads the mask head's encoder.

    Raises:
        ValueError: an image-text family that does not fit; the message says why.
    """
    adapter = registered(BACKBONES).get(config.model_type)
    if native or (adapter is None and config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        return NativeBackbone(config)
    return (adapter or LanguageBackbone)(config)


def startable() -> dict[str, type[Backbone]]:
    """Types of configurations (`model_type`) from whose published folders a grounded model can be started."""
    known = registered(BACKBONES)
    default = Backbone.processor_options.__func__
    return {name: one for name, one in known.items() if one.processor_options.__func__ is not default}


def _side(size) -> int:
    return size if isinstance(size, int) else size[0]

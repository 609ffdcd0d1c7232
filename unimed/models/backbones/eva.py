"""EVA-ViT and a causal language model, as Uni-Med joins them (arXiv 2409.17508); a connector stands between."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.eva import Eva
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from unimed.models.backbones.base import Backbone
from unimed.registry import BACKBONES

#: EVA-CLIP ViT-g/14 without its last block, as Uni-Med, BLIP-2 and MiniGPT-v2 use it.
EVA_VIT_G = {"image_size": 224, "patch_size": 14, "dim": 1408, "depth": 39, "heads": 16, "mlp_hidden": 6144}


class EvaLanguageConfig(PreTrainedConfig):
    """EVA-ViT beside a causal language model.

    Args:
        eva: image_size, patch_size, dim, depth, heads and mlp_hidden of the encoder; EVA-ViT-g by default.
        text_config: configuration of the language model, Llama-2 as published.
        freeze_vision: whether encoder and norm stay as they are.

    Raises:
        ValueError: an unknown key of `eva`.
    """

    model_type = "unimed_eva_language"

    def __init__(self, eva: dict | None = None, text_config=None, freeze_vision: bool = True, **kwargs):
        unknown = sorted(set(eva or {}) - set(EVA_VIT_G))
        if unknown:
            raise ValueError(f"unknown keys of vision: {unknown}; known are {', '.join(EVA_VIT_G)}")
        self.eva = EVA_VIT_G | dict(eva or {})
        if text_config is not None and not isinstance(text_config, PreTrainedConfig):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.text_config, self.freeze_vision = text_config, freeze_vision
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @property
    def patches(self) -> int:
        """Tokens of an image, the class token not counted."""
        return (self.eva["image_size"] // self.eva["patch_size"]) ** 2

    def get_text_config(self, *args, **kwargs):
        return self if self.text_config is None else self.text_config

    def to_dict(self):
        values = super().to_dict()
        values["text_config"] = None if self.text_config is None else self.text_config.to_dict()
        return values


AutoConfig.register("unimed_eva_language", EvaLanguageConfig)


@BACKBONES.register_module(EvaLanguageConfig.model_type)
class EvaLanguageBackbone(Backbone):
    """Adapter with the face of `VisionLanguageBackbone`; it has no projector of its own."""

    def __init__(self, config: EvaLanguageConfig):
        super().__init__()
        self.config = config
        self.visual_encoder = EvaEncoder(**config.eva)
        self.ln_vision = Float32LayerNorm(config.eva["dim"], eps=1e-5)
        self.lm = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        self.freeze()

    def freeze(self) -> None:
        """Freeze what the configuration freezes."""
        if self.config.freeze_vision:
            self.visual_encoder.requires_grad_(False).eval()
            self.ln_vision.requires_grad_(False)

    def train(self, mode: bool = True):
        """As torch does; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_vision:
            self.visual_encoder.eval()
        return self

    @property
    def hidden_dim(self) -> int:
        return self.config.text_config.hidden_size

    @property
    def vision_dim(self) -> int:
        return self.config.eva["dim"]

    @property
    def vision_tokens(self) -> int:
        return self.config.patches

    def vision_features(self, pixels: torch.Tensor, image_grid_thw=None) -> torch.Tensor:
        """[T, 3, S, S] -> [T, N, Dv] without the class token."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vision):
            features = self.visual_encoder(pixels.to(self.visual_encoder.patch_embed.proj.weight.dtype))
            return self.ln_vision(features)[:, 1:]

    def image_tokens(self, pixels: torch.Tensor, image_grid_thw=None) -> torch.Tensor:
        """Raises:
        ValueError: this backbone needs a connector.
        """
        raise ValueError("EVA-ViT has no projector of its own: give the model a connector")

    @property
    def language_model(self):
        return self.lm.model

    @property
    def lm_head(self):
        return self.lm.lm_head


class ImageSizeError(ValueError):
    """An image that is not of the size the encoder was built for."""


class Float32LayerNorm(nn.LayerNorm):
    """Computed in float32 whatever comes in; gives back the type that came in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps).to(
            x.dtype
        )


class EvaEncoder(Eva):
    """[B, 3, S, S], normalised as CLIP does -> [B, 1 + (S / patch)^2, dim], the class token first.

    The output is the residual stream after the last block: no norm stands behind it. Absolute positions, biases on
    queries and values only, exact GELU, norms with eps 1e-6.
    """

    def __init__(self, image_size: int, patch_size: int, dim: int, depth: int, heads: int, mlp_hidden: int):
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            # Half a unit more, because timm cuts the product to a whole number.
            mlp_ratio=(mlp_hidden + 0.5) / dim,
            num_classes=0,
            global_pool="",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.norm = nn.Identity()
        self.fc_norm = nn.Identity()
        self.image_size = image_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Raises:
        ImageSizeError: the images are not [B, 3, S, S] with the S of the configuration.
        """
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, self.image_size, self.image_size):
            raise ImageSizeError(f"images must be [B, 3, {self.image_size}, {self.image_size}], got {[*pixels.shape]}")
        return self.forward_features(pixels)


def resize_positions(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Position embedding [1, 1 + n^2, C] -> [1, tokens, C] with tokens = 1 + m^2.

    The row of the class token stays, the grid is scaled bicubically in float32 (not antialiased), as EVA does. Equal
    sizes give the tensor itself.

    Raises:
        ImageSizeError: either side is no square grid with one class token.
    """
    if positions.shape[1] == tokens:
        return positions
    old, new = (int((count - 1) ** 0.5) for count in (positions.shape[1], tokens))
    if old**2 + 1 != positions.shape[1] or new**2 + 1 != tokens:
        raise ImageSizeError(f"positions of {positions.shape[1]} tokens cannot become {tokens}: both are 1 + n*n")
    positions = positions.float()
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

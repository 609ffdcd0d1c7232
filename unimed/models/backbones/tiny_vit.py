"""The image encoder of LiteMedSAM: timm's TinyViT with the strides that keep a fine grid."""

from __future__ import annotations

import re

import torch
from timm.models.tiny_vit import ConvNorm, TinyVit
from torch import nn
from transformers.models.sam.modeling_sam import SamLayerNorm


class LiteMedSamEncoder(nn.Module):
    """[B, 3, S, S] in [0, 1] -> [B, C, S/4, S/4].

    LiteMedSAM (bowang-lab, Apache-2.0) starts with 1x1 convolutions at full resolution and halves the grid twice, not
    five times as TinyViT does; so a 128 px image has a grid of 32 and a 256 px image one of 64.
    """

    def __init__(self, embed_dims, depths, num_heads, window_sizes, output_dim: int = 256):
        super().__init__()
        self.trunk = TinyVit(
            num_classes=0,
            embed_dims=tuple(embed_dims),
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_sizes=tuple(window_sizes),
        )
        width = embed_dims[0]
        self.trunk.patch_embed.conv1 = ConvNorm(3, width // 2, 1, 1, 0)
        self.trunk.patch_embed.conv2 = ConvNorm(width // 2, width, 1, 1, 0)
        self.trunk.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.trunk.head = nn.Identity()
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], output_dim, 1, bias=False),
            SamLayerNorm(output_dim, data_format="channels_first"),
            nn.Conv2d(output_dim, output_dim, 3, padding=1, bias=False),
            SamLayerNorm(output_dim, data_format="channels_first"),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.neck(self.trunk.forward_features(pixels))


def rename_encoder(name: str) -> str:
    """Name of a LiteMedSAM encoder tensor ("layers.1.blocks.0...") -> name in `LiteMedSamEncoder`.

    timm opens a stage with the downsampling that LiteMedSAM closes the stage before with.
    """
    name = re.sub(r"\.c\.weight$", ".conv.weight", name)
    name = re.sub(r"^patch_embed\.seq\.0\.", "trunk.patch_embed.conv1.", name)
    name = re.sub(r"^patch_embed\.seq\.2\.", "trunk.patch_embed.conv2.", name)
    name = re.sub(r"^layers\.(\d)\.downsample\.", lambda match: f"trunk.stages.{int(match[1]) + 1}.downsample.", name)
    return re.sub(r"^layers\.(\d)\.blocks\.", r"trunk.stages.\1.blocks.", name)

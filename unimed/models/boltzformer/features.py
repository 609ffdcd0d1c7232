"""Image and text to features: FocalNet pyramid, FPN with an encoder on the coarsest map, CLIP text tower."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, FocalNetConfig, FocalNetModel

from unimed.models.boltzformer import focal
from unimed.models.boltzformer.layers import Attention, note, sine_positions


class FocalPyramid(nn.Module):
    """FocalNet of transformers, with the four maps before each downsampling, each through a norm of its own."""

    #: False runs transformers' modules as they are where `focal` could stand for them, for comparison.
    rearranged = True

    def __init__(self, config):
        super().__init__()
        net = FocalNetModel(
            FocalNetConfig(
                image_size=config.image_size,
                patch_size=4,
                embed_dim=config.embed_dim,
                depths=config.depths,
                focal_levels=config.focal_levels,
                focal_windows=config.focal_windows,
                drop_path_rate=config.drop_path_rate,
                use_conv_embed=True,
                use_post_layernorm=True,
                use_layerscale=True,
                layerscale_value=config.layer_scale,
                normalize_modulator=True,
                layer_norm_eps=1e-5,
            ),
            add_pooling_layer=False,
        )
        self.embeddings, self.stages = net.embeddings, net.encoder.stages
        self.norms = nn.ModuleList(nn.LayerNorm(config.embed_dim * 2**i) for i in range(len(config.depths)))

    def forward(self, pixels) -> list[torch.Tensor]:
        """[B, 3, H, W] -> maps of stride 4, 8, 16 and 32, [B, C_i, H_i, W_i]."""
        if self.rearranged and focal.serves(self, pixels):
            return focal.maps(self, pixels)
        hidden, size = self.embeddings(pixels)
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            hidden, before, sizes = stage(hidden, size)
            maps.append(norm(before).transpose(1, 2).unflatten(2, size))
            size = tuple(sizes[-2:])
        return maps


class ConvNorm(nn.Conv2d):
    """Convolution without bias, GroupNorm, optional ReLU."""

    def __init__(self, inputs, outputs, kernel, groups, relu):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm, self.relu = nn.GroupNorm(groups, outputs), relu

    def forward(self, values):
        values = self.norm(super().forward(values))
        return values.relu() if self.relu else values


class EncoderLayer(nn.Module):
    def __init__(self, dim, heads, inner):
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, hidden, position):
        placed = hidden + position
        hidden = self.norm1(hidden + self.self_attn(placed, placed, hidden))
        return self.norm2(hidden + self.linear2(self.linear1(hidden).relu()))


class PixelDecoder(nn.Module):
    """FPN over the pyramid, with a transformer encoder on its coarsest map (MaskFormer)."""

    def __init__(self, config):
        super().__init__()
        dim, groups = config.hidden_size, config.norm_groups
        channels = [config.embed_dim * 2**i for i in range(4)]
        self.input_proj = nn.Conv2d(channels[3], dim, 1)
        self.encoder = nn.ModuleList(
            EncoderLayer(dim, config.num_heads, config.ffn_size) for _ in range(config.encoder_layers)
        )
        for level in (1, 2, 3):
            self.add_module(f"adapter_{level}", ConvNorm(channels[level - 1], dim, 1, groups, relu=False))
        for level in (1, 2, 3, 4):
            self.add_module(f"layer_{level}", ConvNorm(dim, dim, 3, groups, relu=True))
        self.mask_features = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, pyramid, record=None):
        """Four maps -> (mask features [B, D, H/4, W/4], three maps [B, D, h, w] of stride 32, 16, 8)."""
        running = self.input_proj(pyramid[3])
        size = running.shape[-2:]
        hidden = running.flatten(2).transpose(1, 2)
        position = sine_positions(*size, hidden.shape[-1], hidden.device, hidden.dtype)
        for layer in self.encoder:
            hidden = layer(hidden, position)
        note(record, "encoder", hidden)
        running = self.layer_4(hidden.transpose(1, 2).unflatten(2, size))
        levels = [running]
        for level in (3, 2, 1):
            lateral = getattr(self, f"adapter_{level}")(pyramid[level - 1])
            if running.device.type == "cpu":  # enlarging is up to ten times as fast with channels last there
                running = running.contiguous(memory_format=torch.channels_last)
            running = lateral + F.interpolate(running, size=lateral.shape[-2:], mode="nearest")
            running = getattr(self, f"layer_{level}")(running)
            levels.append(running)
        mask_features = self.mask_features(running)
        note(record, "mask_features", mask_features)
        for i, level in enumerate(levels[:3]):
            note(record, f"multi_scale.{i}", level)
        return mask_features, levels[:3]


class TextTower(nn.Module):
    """CLIP text transformer whose every token is projected to the decoder's width."""

    def __init__(self, config):
        super().__init__()
        self.tower = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.text_vocab_size,
                hidden_size=config.text_hidden_size,
                intermediate_size=4 * config.text_hidden_size,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=config.text_length,
                hidden_act="quick_gelu",
                layer_norm_eps=1e-12,
                projection_dim=config.hidden_size,
                bos_token_id=config.text_vocab_size - 2,
                eos_token_id=config.text_vocab_size - 1,
                pad_token_id=config.text_vocab_size - 1,
            )
        )
        # 0.02 and not the published standard deviation of one, with which training from scratch starts badly.
        self.lang_proj = nn.Parameter(torch.randn(config.text_hidden_size, config.hidden_size) * 0.02)
        # Scale of text similarity: v1 chooses a query by it, v2 only carries it along.
        self.register_buffer("logit_scale", torch.ones([]))

    def forward(self, input_ids, attention_mask):
        """[N, L] ids and mask -> (tokens [N, longest, D] with zeros for padding, valid [N, longest] bool, end [N, D]).

        Attention is causal, so padding to the right changes nothing and is cut off.
        """
        longest = int(attention_mask.sum(1).max())
        hidden = self.tower(input_ids=input_ids[:, :longest]).last_hidden_state @ self.lang_proj
        valid = attention_mask[:, :longest].bool()
        end = hidden[torch.arange(len(hidden), device=hidden.device), input_ids.argmax(1)]
        return hidden * valid[..., None], valid, end

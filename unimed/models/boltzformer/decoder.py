"""Mask decoder of v2: queries look at sampled image positions, talk with the prompt's tokens, and draw masks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from unimed.models.boltzformer.layers import (
    CrossAttentionLayer,
    FeedForwardLayer,
    Layout,
    MaskEmbedding,
    SelfAttentionLayer,
    draw_masks,
    look_at_image,
    note,
    sine_positions,
)
from unimed.models.boltzformer.sampling import Draws, blocked_probability


def _shrunk(maps, size):
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class BoltzFormerDecoder(nn.Module):
    """N items (image, prompt), Q queries, D channels. Image keys and values exist once per image, never per prompt."""

    def __init__(self, config):
        super().__init__()
        dim, heads, inner, layers = config.hidden_size, config.num_heads, config.ffn_size, config.decoder_layers
        self.config = config
        self.query_feat_ = nn.Embedding(config.num_queries, dim)
        self.query_embed_ = nn.Embedding(config.num_queries, dim)
        self.classifier_query = nn.Embedding(1, dim)
        self.level_embed = nn.Embedding(3, dim)
        self.initial_self_attention_layer = SelfAttentionLayer(dim, heads)
        self.initial_ffn_layer = FeedForwardLayer(dim, inner)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardLayer(dim, inner) for _ in range(layers))
        self.classifier_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(dim, heads) for _ in range(layers))
        self.classifier_ffn_layers = nn.ModuleList(FeedForwardLayer(dim, inner) for _ in range(layers))
        self.classifier = nn.Linear(dim, 1)
        self.decoder_norm = nn.LayerNorm(dim)
        self.mask_embed = MaskEmbedding(dim)
        # Carried along so that published weights load without a rest; text-prompted masks do not use it.
        self.register_buffer("class_embed", torch.randn(dim, dim) * 0.02)

    def _shrinks_first(self, mask_features) -> bool:
        """Whether masks between layers, which are shrunk when they are read, are drawn small: all of it is linear."""
        inference = not torch.is_grad_enabled() and mask_features.dtype == torch.float32
        return inference and self.config.compat != "reference"

    def attention_mask(self, logits, size, layer: int, draws: Draws | None):
        """Mask for the cross-attention after `layer` (-1 before the first): [N, heads or 1, Q, positions].

        Bool with True for "may attend", or in expectation mode the log of the probability to be kept.
        """
        config = self.config
        resized = _shrunk(logits.detach().float(), size)
        scores = resized.sigmoid().flatten(2)[:, None]
        low = scores < config.mask_threshold
        if config.attention == "masked":
            return ~low | low.all(-1, keepdim=True)
        temperature = config.base_temperature / (2 + layer)
        never = blocked_probability(scores, temperature, config.sample_ratio, config.mask_threshold)
        if config.attention == "expectation":
            kept = torch.where(low, 1 - never, 1.0)
            return kept.clamp_min(1e-6).log().to(logits.dtype)
        shape = (len(scores), config.num_heads, *scores.shape[2:])
        uniform = torch.rand(shape, device=scores.device) if draws is None else draws(layer, shape)
        blocked = (uniform < never) & low
        return ~blocked | blocked.all(-1, keepdim=True)

    def forward(self, levels, mask_features, tokens, valid, layout: Layout, draws=None, record=None):
        """Masks and existence of every item.

        Args:
            levels: maps [B, D, h, w] of stride 32, 16, 8. mask_features: [B, D, H/4, W/4].
            tokens: [N, T, D] of each item's prompt, zeros where `valid` [N, T] is False.
            layout: which item belongs to which image.
            draws: uniform numbers for sampling; None: the global generator.
            record: dictionary to be filled with intermediates, for comparison.

        Returns:
            (logits [N, Q, H/4, W/4], existence logit [N, 1])
        """
        config, items, count = self.config, len(tokens), self.config.num_queries
        sizes = [tuple(level.shape[-2:]) for level in levels]
        memory = [m.flatten(2).transpose(1, 2) + self.level_embed.weight[i] for i, m in enumerate(levels)]
        places = [sine_positions(*size, config.hidden_size, tokens.device, tokens.dtype) for size in sizes]
        queries = self.query_feat_.weight.expand(items, -1, -1)
        query_place = self.query_embed_.weight.expand(items, -1, -1)
        place = torch.cat((query_place, tokens.detach()), 1)
        known = None
        if config.compat != "reference":
            known = F.pad(valid, (count, 0), value=True)[:, None, None]  # [N, 1, 1, Q+T]
        both = self.initial_self_attention_layer(torch.cat((queries, tokens), 1), place, known)
        note(record, "initial_self", both)
        queries, tokens = self.initial_ffn_layer(both[:, :count]), both[:, count:]
        note(record, "initial_ffn", queries)
        cls = self.classifier_query.weight.expand(items, -1, -1)
        between = [mask_features] * len(sizes)
        if record is None and self._shrinks_first(mask_features):
            between = [_shrunk(mask_features, size) for size in sizes]
        logits = self.mask_logits(queries, between[0], layout)
        note(record, "heads0.mask_logits", logits)
        for i in range(config.decoder_layers):
            level = i % 3
            mask = self.attention_mask(logits, sizes[level], i - 1, draws)
            note(record, f"heads{i}.may_attend", mask)
            cross = self.transformer_cross_attention_layers[i]
            queries = look_at_image(cross, queries, query_place, memory[level], places[level], mask, layout)
            note(record, f"layer{i}.after_cross", queries)
            both = self.transformer_self_attention_layers[i](torch.cat((queries, tokens), 1), place, known)
            note(record, f"layer{i}.after_self", both)
            queries, tokens = self.transformer_ffn_layers[i](both[:, :count]), both[:, count:]
            note(record, f"layer{i}.after_ffn", queries)
            last = i + 1 == config.decoder_layers
            logits = self.mask_logits(queries, mask_features if last else between[(i + 1) % 3], layout)
            note(record, f"heads{i + 1}.mask_logits", logits)
            seen, seen_place = (both.detach(), place.detach()) if config.detach_existence else (both, place)
            cls = self.classifier_cross_attention_layers[i](cls, cls, seen + seen_place, seen, known)
            cls = self.classifier_ffn_layers[i](cls)
            note(record, f"layer{i}.cls", cls)
        return logits, self.classifier(cls[:, 0])

    def mask_logits(self, queries, mask_features, layout: Layout):
        """[N, Q, D] -> logits [N, Q, H/4, W/4]."""
        return draw_masks(self.mask_embed(self.decoder_norm(queries)), mask_features, layout)

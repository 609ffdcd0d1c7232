"""BiomedParse v1 as a transformers model: one of 101 masks is chosen by its likeness to the prompt (SEEM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from unimed.models.boltzformer.configuration import BiomedParseV1Config
from unimed.models.boltzformer.encoding import ImageEncoder, ImageFeatures
from unimed.models.boltzformer.features import FocalPyramid, PixelDecoder, TextTower
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
from unimed.models.boltzformer.modeling import RGB_MEAN, RGB_STD, SliceOutput
from unimed.models.boltzformer.predicting import ImagePredictor
from unimed.models.boltzformer.prompting import PromptEncoder, PromptFeatures
from unimed.models.weights import WholeWeights

#: The text similarity is never scaled by more than this.
MAX_SCALE = 100.0


@dataclass
class BiomedParseV1Output(ModelOutput):
    """N items with Q queries, P prompts.

    masks: logits [N, Q, H/4, W/4] of all queries. vectors: [N, Q, D], what a query stands for. similarity: [B, P, Q]
    of prompt and query. matched: [B, P], the query each prompt chose. chosen: its logits [B, P, H/4, W/4].
    """

    masks: torch.Tensor | None = None
    vectors: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    matched: torch.Tensor | None = None
    chosen: torch.Tensor | None = None


class MaskedAttentionDecoder(nn.Module):
    """Decoder of v1: masked attention, and tokens that pass the feed-forward layers together with the queries."""

    def __init__(self, config):
        super().__init__()
        dim, heads, inner, layers = config.hidden_size, config.num_heads, config.ffn_size, config.decoder_layers
        self.config = config
        self.query_feat = nn.Embedding(config.num_queries, dim)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.level_embed = nn.Embedding(3, dim)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardLayer(dim, inner) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.mask_embed = MaskEmbedding(dim)
        self.class_embed = nn.Parameter(torch.randn(dim, dim) * 0.02)

    def attention_mask(self, logits, size):
        """True where a query may look, [N, 1, Q, positions]: its own mask, or everywhere where that is empty."""
        resized = F.interpolate(logits.detach().float(), size=size, mode="bilinear", align_corners=False)
        low = resized.sigmoid().flatten(2)[:, None] < self.config.mask_threshold
        return ~low | low.all(-1, keepdim=True)

    def forward(self, levels, mask_features, tokens, valid, layout: Layout, record=None):
        """As the decoder of v2; returns (logits [N, Q, H/4, W/4], vectors [N, Q, D])."""
        config, items, count = self.config, len(tokens), self.config.num_queries
        sizes = [tuple(level.shape[-2:]) for level in levels]
        memory = [m.flatten(2).transpose(1, 2) + self.level_embed.weight[i] for i, m in enumerate(levels)]
        places = [sine_positions(*size, config.hidden_size, tokens.device, tokens.dtype) for size in sizes]
        query_place = self.query_embed.weight.expand(items, -1, -1)
        place = torch.cat((query_place, tokens), 1)
        known = F.pad(valid, (count, 0), value=True)[:, None, None]
        queries = self.query_feat.weight.expand(items, -1, -1)
        logits = self.mask_logits(queries, mask_features, layout)
        note(record, "heads0.mask_logits", logits)
        for i in range(config.decoder_layers):
            level = i % 3
            mask = self.attention_mask(logits, sizes[level])
            note(record, f"heads{i}.may_attend", mask)
            cross = self.transformer_cross_attention_layers[i]
            queries = look_at_image(cross, queries, query_place, memory[level], places[level], mask, layout)
            note(record, f"layer{i}.after_cross", queries)
            both = self.transformer_self_attention_layers[i](torch.cat((queries, tokens), 1), place, known)
            note(record, f"layer{i}.after_self", both)
            both = self.transformer_ffn_layers[i](both)
            note(record, f"layer{i}.after_ffn", both)
            queries, tokens = both[:, :count], both[:, count:]
            logits = self.mask_logits(queries, mask_features, layout)
            note(record, f"heads{i + 1}.mask_logits", logits)
        return logits, self.decoder_norm(queries) @ self.class_embed

    def mask_logits(self, queries, mask_features, layout: Layout):
        """[N, Q, D] -> logits [N, Q, H/4, W/4]."""
        return draw_masks(self.mask_embed(self.decoder_norm(queries)), mask_features, layout)


class BiomedParseV1Model(ImagePredictor, PromptEncoder, ImageEncoder, WholeWeights, PreTrainedModel):
    """Text-prompted segmentation of 2D pictures (BiomedParse v1, Nature Methods 2024).

    It has no existence score; `unimed.metrics.recognition.presence_p_value` judges its masks afterwards.
    """

    config_class = BiomedParseV1Config
    base_model_prefix = "biomedparse_v1"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: BiomedParseV1Config):
        super().__init__(config)
        self.register_buffer("pixel_mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(RGB_STD).view(1, 3, 1, 1))
        self.backbone = FocalPyramid(config)
        self.pixel_decoder = PixelDecoder(config)
        self.text = TextTower(config)
        self.decoder = MaskedAttentionDecoder(config)
        self.post_init()

    def _init_weights(self, module):
        # Every part has set up its own weights when it was built.
        pass

    def forward(
        self,
        pixel_values=None,
        prompt_features: PromptFeatures | None = None,
        image_features: ImageFeatures | None = None,
        record: dict | None = None,
        input_ids=None,
        attention_mask=None,
        num_prompts=None,
    ) -> BiomedParseV1Output:
        """The same prompts on every image; see `BiomedParseV1Output`.

        Args:
            input_ids, attention_mask, num_prompts: what the processor gives for one image, instead of features.

        Raises:
            ValueError: no prompt, or ids for several images.
        """
        if prompt_features is None and input_ids is not None:
            if num_prompts is not None and len(num_prompts) > 1:
                raise ValueError("all images are asked the same here; give prompt_features, or ids for one image")
            prompt_features = self.encode_ids(input_ids, attention_mask)
        if prompt_features is None or not len(prompt_features):
            raise ValueError("no prompt: give input_ids, or prompt_features of encode_prompts")
        features = image_features or self.encode_images(pixel_values, record)
        images, prompts = len(features.mask_features), len(prompt_features)
        if self.config.compat == "reference":
            tokens = prompt_features.tokens[prompt_features.valid].expand(images, -1, -1)
            valid, layout = tokens.new_ones(tokens.shape[:2], dtype=torch.bool), Layout([1] * images, tokens.device)
        else:
            items = prompt_features.repeat(images)
            tokens, valid, layout = items.tokens, items.valid, Layout([prompts] * images, items.tokens.device)
        masks, vectors = self.decoder(features.levels, features.mask_features, tokens, valid, layout, record)
        predicted = self.scale() * _unit(vectors)
        asked = _unit(prompt_features.end)
        if self.config.compat == "reference":
            similarity = torch.einsum("bqd,pd->bpq", predicted, asked)
            candidates = masks[:, None].expand(-1, prompts, -1, -1, -1)
        else:
            similarity = torch.einsum("bpqd,pd->bpq", predicted.unflatten(0, (images, prompts)), asked)
            candidates = masks.unflatten(0, (images, prompts))
        matched = similarity.argmax(-1)
        place = matched[..., None, None, None].expand(-1, -1, 1, *masks.shape[-2:])
        return BiomedParseV1Output(masks, vectors, similarity, matched, candidates.gather(2, place)[:, :, 0])

    def scale(self):
        """What a cosine of text and query is multiplied by."""
        return self.text.logit_scale.exp().clamp(max=MAX_SCALE)

    @torch.no_grad()
    def segment_slices(
        self,
        images: torch.Tensor | ImageFeatures,
        prompts: Sequence[str] | PromptFeatures,
        *,
        seed: int | None = None,
        slice_numbers: Sequence[int] | None = None,
    ) -> SliceOutput:
        """As v2's, without edges; nothing is sampled. `existence` is NaN: v1 does not say whether a thing is there."""
        if not isinstance(images, ImageFeatures):
            if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < 32:
                raise ValueError(f"images must be [S, 3, H, W] with sides of at least 32 px, got {tuple(images.shape)}")
            images = self.encode_images(images)
        if not isinstance(prompts, PromptFeatures):
            prompts = self.encode_prompts(prompts)
        chosen = self(prompt_features=prompts, image_features=images).chosen.float()
        return SliceOutput(chosen, chosen.new_full(chosen.shape[:2], float("nan")))

    def class_logits(self, vectors, class_vectors):
        """Which of C classes a query stands for, [N, Q, C]; class vectors [C, D] are means over prompt templates."""
        return self.text.logit_scale.exp() * _unit(vectors) @ class_vectors.T


def _unit(vectors):
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-7)

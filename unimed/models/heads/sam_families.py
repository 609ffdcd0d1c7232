"""Mask decoders on every SAM-like model of transformers: one adapter, and a declared entry per family."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    PreTrainedConfig,
    Sam2Config,
    Sam2Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamHQConfig,
    SamHQModel,
)

from unimed.models.heads.mask import MaskDecoder, MaskFeatures, MaskOutput, mask_decoder, per_image
from unimed.models.heads.sam import SAM2_LEADING, SAM_LEADING, output_tokens, tokens_per_image


@dataclass(frozen=True)
class SamFamily:
    """What has to be known of a SAM-like class of transformers.

    Args:
        config, model: its classes.
        pyramid: the encoder gives finer maps for the decoder and the decoder an object score (presence), as in SAM 2;
            otherwise one map, as in SAM.
        intermediate: the decoder also reads the first map of the encoder's global attention (SAM-HQ).
    """

    config: type[PreTrainedConfig]
    model: type
    pyramid: bool = True
    intermediate: bool = False


#: Families beside those with a decoder of their own (`sam`, `sam2_video` with its memory, `medsam_lite`).
FAMILIES = (
    SamFamily(Sam2Config, Sam2Model),
    SamFamily(Sam3TrackerConfig, Sam3TrackerModel),
    SamFamily(EdgeTamConfig, EdgeTamModel),
    SamFamily(SamHQConfig, SamHQModel, pyramid=False, intermediate=True),
)


class SamFamilyDecoder(MaskDecoder):
    """A SAM-like model of transformers, prompted by language vectors or boxes.

    A language vector is the sparse prompt; in families with a pyramid it stands behind the two padding tokens for "no
    point", as in `Sam2MaskHead`. The mask of highest predicted IoU is taken.
    """

    family: SamFamily

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        # The code of places is kept twice: weights tied below the top model are lost when it is saved.
        config.tie_word_embeddings = False
        self.sam = self.family.model(config)
        with torch.no_grad():
            code = self.sam.shared_image_embedding.positional_embedding
            self.sam.prompt_encoder.shared_embedding.positional_embedding.copy_(code)

    @property
    def image_size(self) -> int:
        size = self.config.prompt_encoder_config.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def prompt_dim(self) -> int:
        return self.config.mask_decoder_config.hidden_size

    @property
    def embedding_dim(self) -> int:
        return self.prompt_dim

    def encode(self, pixels: torch.Tensor) -> MaskFeatures:
        """[B, 3, S, S] normalised -> features; one call per image, whatever the number of phrases."""
        pixels = pixels.to(self.sam.dtype)
        if not self.family.pyramid:
            output = self.sam.vision_encoder(pixels)
            finer = ()
            if self.family.intermediate:
                # [B, h, w, C] of the encoder, kept with the channels first as all maps are.
                finer = (output[1][0].permute(0, 3, 1, 2),)
            return MaskFeatures(output[0], finer)
        maps = self.sam.vision_encoder(pixels, return_dict=True).fpn_hidden_states
        fine, middle, coarse = maps[:3]
        decoder = self.sam.mask_decoder
        return MaskFeatures(coarse, (decoder.conv_s0(fine), decoder.conv_s1(middle)))

    def decode(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        """Masks of language vectors [N, C]; `image_index` [N] says which image each belongs to."""
        if not prompts.shape[0]:
            return self._empty(features)
        sparse = self._sparse(prompts.to(features.embedding.dtype))
        return per_image(
            features, image_index, lambda one, rows: self._run(one, sparse[rows][None], self.family.pyramid)
        )

    def decode_boxes(self, features: MaskFeatures, image_index: torch.Tensor, boxes_xyxy: torch.Tensor) -> MaskOutput:
        """Masks of N boxes given in pixels of the square the encoder sees, one mask each."""
        if not boxes_xyxy.shape[0]:
            return self._empty(features)
        boxes_xyxy = boxes_xyxy.to(features.embedding.dtype)

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            sparse, _ = self.sam.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes_xyxy[rows][None], input_masks=None
            )
            return self._run(one, sparse, False)

        return per_image(features, image_index, decode_rows)

    def decode_tokens(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Output tokens [N, 5, C] for N language vectors: IoU token, then the mask tokens."""
        place = self.sam.get_image_wide_positional_embeddings()
        leading = SAM2_LEADING if self.family.pyramid else SAM_LEADING

        def tokens_of(one: MaskFeatures, sparse: torch.Tensor) -> torch.Tensor:
            embedding = self._embedding(one)
            return output_tokens(self.sam.mask_decoder, embedding, place, sparse, self._dense(embedding), leading)

        return tokens_per_image(features, image_index, self._sparse(prompts), tokens_of)

    def _sparse(self, prompts: torch.Tensor) -> torch.Tensor:
        if not self.family.pyramid:
            return prompts[:, None]
        padding = self.sam.prompt_encoder.not_a_point_embed.weight.expand(prompts.shape[0], 2, -1)
        return torch.cat([padding.to(prompts.dtype), prompts[:, None]], dim=1)

    def _embedding(self, one: MaskFeatures) -> torch.Tensor:
        if not self.family.pyramid:
            return one.embedding
        return one.embedding + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)

    def _dense(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embedding)

    def _run(self, one: MaskFeatures, sparse: torch.Tensor, multimask: bool) -> MaskOutput:
        embedding = self._embedding(one)
        options = dict(
            image_embeddings=embedding,
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse.to(embedding.dtype),
            dense_prompt_embeddings=self._dense(embedding),
            multimask_output=multimask,
        )
        if self.family.pyramid:
            options["high_resolution_features"] = list(one.high_resolution)
        if self.family.intermediate:
            options |= dict(
                hq_token_only=False,
                intermediate_embeddings=[level.permute(0, 2, 3, 1) for level in one.high_resolution],
            )
        output = self.sam.mask_decoder(**options)
        masks, iou = output[0].flatten(0, 1), output[1].flatten(0, 1)  # [P, K, h, w], [P, K]
        best = iou.argmax(dim=1)
        rows = torch.arange(best.shape[0], device=best.device)
        logits = masks[rows, best]
        there = output[3].reshape(-1) if self.family.pyramid else logits.flatten(1).amax(dim=1)
        return MaskOutput(logits, iou[rows, best], there, candidates=masks, candidate_iou=iou)

    def _empty(self, features: MaskFeatures) -> MaskOutput:
        side = 4 * features.embedding.shape[-1]
        none = features.embedding.new_zeros
        return MaskOutput(none(0, side, side), none(0), none(0))


def _declare(family: SamFamily) -> type[SamFamilyDecoder]:
    name = family.model.__name__.removesuffix("Model") + "MaskDecoder"
    made = type(name, (SamFamilyDecoder,), {"family": family, "kind": family.config.model_type,
                                            "__module__": __name__, "__doc__": SamFamilyDecoder.__doc__})  # fmt: skip
    return mask_decoder(family.config)(made)


for _family in FAMILIES:
    _decoder = _declare(_family)
    globals()[_decoder.__name__] = _decoder

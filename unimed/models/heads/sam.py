"""Mask head on transformers' SAM (ViT-B, ViT-L, ViT-H; SAM, MedSAM and the SAM inside LISA and uMedGround)."""

from __future__ import annotations

import torch
from transformers import SamConfig, SamModel

from unimed.models.heads.mask import FeatureCache, MaskDecoder, MaskFeatures, MaskOutput, mask_decoder, per_image

#: Output tokens before the masks' that say if an object is there; SAM 2 alone has one.
SAM_LEADING, SAM2_LEADING = 0, 1


@mask_decoder(SamConfig)
class SamMaskHead(MaskDecoder):
    """SAM image encoder and mask decoder; prompts are language vectors or boxes. The same face as `Sam2MaskHead`.

    A language vector is the only sparse prompt (LISA, uMedGround) and the first mask token's mask is taken.

    Args:
        config: configuration of transformers' SAM. Its decoder works with `layer_norm_eps` 1e-5, as published; the
            default of transformers, 1e-6, moves output tokens by 2e-4. With an attribute `predicts_masks` that is
            False the parts that draw masks are not built (uMedGround).
    """

    kind = "sam"

    def __init__(self, config: SamConfig):
        super().__init__()
        self.config = config
        # The code of places is kept twice, as in the files: weights tied below the top model are lost when it is saved.
        config.tie_word_embeddings = False
        self.sam = SamModel(config)
        with torch.no_grad():
            code = self.sam.shared_image_embedding.positional_embedding
            self.sam.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
        self.predicts_masks = getattr(config, "predicts_masks", True)
        if not self.predicts_masks:
            for part in ("upscale_conv1", "upscale_conv2", "upscale_layer_norm", "output_hypernetworks_mlps"):
                delattr(self.sam.mask_decoder, part)
        self.cache: FeatureCache | None = None

    @property
    def prompt_dim(self) -> int:
        """Length of a prompt vector."""
        return self.sam.config.mask_decoder_config.hidden_size

    @property
    def image_size(self) -> int:
        """Side in pixels of the square the encoder sees."""
        return self.sam.config.vision_config.image_size

    @property
    def embedding_dim(self) -> int:
        return self.prompt_dim

    def encode(self, pixels: torch.Tensor) -> MaskFeatures:
        """[B, 3, S, S] normalised -> features; one call per image, whatever the number of phrases."""
        encoder = self.sam.vision_encoder
        frozen = not any(parameter.requires_grad for parameter in encoder.parameters())
        if self.cache is not None and frozen:
            with torch.no_grad():
                return MaskFeatures(self.cache(pixels, lambda new: encoder(new.to(self.sam.dtype)).last_hidden_state))
        return MaskFeatures(encoder(pixels.to(self.sam.dtype)).last_hidden_state)

    def decode(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        """Masks of N language vectors [N, C]; `image_index` [N] says which image each belongs to."""
        if not prompts.shape[0]:
            return self._empty(features)

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            return self._decode_sparse(one, prompts[rows][None, :, None], self._no_mask(one))

        return per_image(features, image_index, decode_rows)

    def decode_tokens(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Output tokens [N, 5, C] of the decoder for N language vectors: IoU token, then the mask tokens."""
        place = self.sam.get_image_wide_positional_embeddings()

        def tokens_of(one: MaskFeatures, sparse: torch.Tensor) -> torch.Tensor:
            return output_tokens(self.sam.mask_decoder, one.embedding, place, sparse, self._no_mask(one), SAM_LEADING)

        return tokens_per_image(features, image_index, prompts[:, None], tokens_of)

    def decode_boxes(self, features: MaskFeatures, image_index: torch.Tensor, boxes_xyxy: torch.Tensor) -> MaskOutput:
        """Masks of N boxes given in pixels of the square the encoder sees (one mask each, SAM's own way)."""
        if not boxes_xyxy.shape[0]:
            return self._empty(features)

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            sparse, dense = self.sam.prompt_encoder(
                input_points=None,
                input_labels=None,
                input_boxes=boxes_xyxy[rows][None].to(one.embedding.dtype),
                input_masks=None,
            )
            return self._decode_sparse(one, sparse, dense)

        return per_image(features, image_index, decode_rows)

    def _no_mask(self, one: MaskFeatures) -> torch.Tensor:
        return self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(one.embedding)

    def _decode_sparse(self, one: MaskFeatures, sparse: torch.Tensor, dense: torch.Tensor) -> MaskOutput:
        if not self.predicts_masks:
            raise ValueError("this model answers with boxes: the parts of its SAM that draw masks were removed")
        masks, iou = self.sam.mask_decoder(
            image_embeddings=one.embedding,
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse.to(one.embedding.dtype),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[:2]
        logits = masks[0, :, 0]
        return MaskOutput(logits=logits, iou=iou[0, :, 0], object_logits=logits.flatten(1).amax(dim=1))

    def _empty(self, features: MaskFeatures) -> MaskOutput:
        side = 4 * features.embedding.shape[-1]
        none = features.embedding.new_zeros
        return MaskOutput(none(0, side, side), none(0), none(0))


def output_tokens(decoder, embedding, place, sparse, dense, leading: int) -> torch.Tensor:
    """Output tokens [P, T, C] of a SAM-like mask decoder after its two-way transformer, masks left out.

    Args:
        embedding, place, dense: [1, C, h, w].
        sparse: [P, K, C], the prompt tokens of P prompts.
        leading: output tokens before the IoU token, which are dropped.
    """
    own = [decoder.iou_token.weight, decoder.mask_tokens.weight]
    if leading:
        own.insert(0, decoder.obj_score_token.weight)
    own = torch.cat(own)
    count = len(sparse)
    tokens = torch.cat([own.expand(count, -1, -1), sparse.to(own.dtype)], dim=1)[None]  # [1, P, T + K, C]
    queries, _ = decoder.transformer(
        point_embeddings=tokens,
        image_embeddings=(embedding + dense).repeat_interleave(count, dim=0),
        image_positional_embeddings=place.repeat_interleave(count, dim=0),
        attention_similarity=None,
    )[:2]
    return queries[0, :, leading : len(own)]


def tokens_per_image(features: MaskFeatures, image_index, sparse, tokens_of, chunk: int = 64) -> torch.Tensor:
    """`tokens_of(features of one image, sparse [P, K, C])` for all images, rows back in order.

    Args:
        image_index: [N], the image of each prompt.
        sparse: [N, K, C].
    """
    parts, order = [], []
    for image in image_index.unique().tolist():
        for rows in torch.nonzero(image_index == image).flatten().split(chunk):
            parts.append(tokens_of(features.select(image), sparse[rows]))
            order.append(rows)
    return torch.cat(parts)[torch.argsort(torch.cat(order))]

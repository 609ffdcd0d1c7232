"""Mask head on transformers' SAM2: a language vector prompts the mask decoder (Sa2VA, UniBiomed)."""

from __future__ import annotations

import torch
from transformers import Sam2VideoConfig, Sam2VideoModel

from unimed.models.heads import hiera, sam2_decoding
from unimed.models.heads.mask import MaskDecoder, MaskFeatures, MaskOutput, mask_decoder, per_image
from unimed.models.heads.sam import SAM2_LEADING, output_tokens, tokens_per_image


@mask_decoder(Sam2VideoConfig)
class Sam2MaskHead(MaskDecoder):
    """SAM2 image encoder and mask decoder; prompts are language vectors, boxes, points or masks.

    A language vector stands behind the two padding tokens that the prompt encoder gives for "no point", as Sa2VA was
    trained. The decoder always proposes three masks and the one of highest predicted IoU is taken; a low object score
    does not erase the mask, it is handed on so that the caller can say that the object is absent.

    Args:
        config: configuration of transformers' SAM2 video model (its image path is the one of SAM2, and its memory
            modules carry a mask through the slices of a volume).
    """

    kind = "sam2"

    def __init__(self, config: Sam2VideoConfig):
        super().__init__()
        self.config = config
        self.sam = Sam2VideoModel(config)

    @property
    def prompt_dim(self) -> int:
        """Length of a prompt vector."""
        return self.sam.hidden_dim

    @property
    def image_size(self) -> int:
        """Side in pixels of the square the encoder sees."""
        return self.sam.image_size

    @property
    def embedding_dim(self) -> int:
        return self.sam.hidden_dim

    def encode(self, pixels: torch.Tensor) -> MaskFeatures:
        """[B, 3, S, S] normalised -> features; one call per image, whatever the number of phrases."""
        pixels, encoder = pixels.to(self.sam.dtype), self.sam.vision_encoder
        if hiera.serves(encoder, pixels):
            coarse, *finer = hiera.encode(encoder, self.sam.mask_decoder, pixels)
            return MaskFeatures(coarse, tuple(finer))
        outputs = encoder(pixels, return_dict=True)
        fine, middle, coarse = outputs.fpn_hidden_states[:3]
        decoder = self.sam.mask_decoder
        return MaskFeatures(coarse, (decoder.conv_s0(fine), decoder.conv_s1(middle)))

    def decode(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        """Masks of N language vectors.

        Args:
            image_index: [N], which of the images a prompt belongs to.
            prompts: [N, C].
        """
        if not prompts.shape[0]:
            return self._empty(features)
        prompts = prompts.to(features.embedding.dtype)

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            padding = self.sam.prompt_encoder.not_a_point_embed.weight[None, None].expand(1, rows.shape[0], 2, -1)
            sparse = torch.cat([padding, prompts[rows][None, :, None]], dim=2)
            return self._decode_sparse(one, sparse, multimask=True)

        return per_image(features, image_index, decode_rows)

    def decode_tokens(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Output tokens [N, 5, C] of the decoder for N language vectors: IoU token, then the mask tokens."""
        padding = self.sam.prompt_encoder.not_a_point_embed.weight.expand(prompts.shape[0], 2, -1)
        sparse = torch.cat([padding.to(prompts.dtype), prompts[:, None]], dim=1)
        place = self.sam.get_image_wide_positional_embeddings()

        def tokens_of(one: MaskFeatures, rows: torch.Tensor) -> torch.Tensor:
            embedding = one.embedding + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)
            dense = self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embedding)
            return output_tokens(self.sam.mask_decoder, embedding, place, rows, dense, SAM2_LEADING)

        return tokens_per_image(features, image_index, sparse, tokens_of)

    def decode_boxes(self, features: MaskFeatures, image_index: torch.Tensor, boxes_xyxy: torch.Tensor) -> MaskOutput:
        """Masks of N boxes given in pixels of the square the encoder sees (one mask each, SAM2's own way)."""
        if not boxes_xyxy.shape[0]:
            return self._empty(features)
        boxes_xyxy = boxes_xyxy.to(features.embedding.dtype)

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            sparse, _ = self.sam.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes_xyxy[rows][None], input_masks=None
            )
            return self._decode_sparse(one, sparse, multimask=False)

        return per_image(features, image_index, decode_rows)

    def decode_points(
        self, features: MaskFeatures, points_xy: torch.Tensor, labels: torch.Tensor, multimask: bool = True
    ) -> MaskOutput:
        """Masks of P point sets in the first image: `points_xy` [P, K, 2] in encoder pixels, `labels` [P, K] 0 or 1."""
        sparse, _ = self.sam.prompt_encoder(
            input_points=points_xy[None].to(features.embedding.dtype),
            input_labels=labels[None],
            input_boxes=None,
            input_masks=None,
        )
        return self._decode_sparse(features.select(0), sparse, multimask=multimask)

    def decode_conditioned(self, embedding: torch.Tensor, features: MaskFeatures) -> MaskOutput:
        """Masks of N objects from memory alone: `embedding` [N, C, h, w] has attended to it, no prompt is given."""
        count = len(embedding)
        padding = self.sam.prompt_encoder.not_a_point_embed.weight[None, None].expand(count, 1, 2, -1)
        fine = [level.expand(count, -1, -1, -1) for level in features.high_resolution]
        return self._run_decoder(embedding, padding.to(embedding.dtype), fine, multimask=True)

    def _decode_sparse(self, one: MaskFeatures, sparse: torch.Tensor, multimask: bool) -> MaskOutput:
        embedding = one.embedding + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)
        return self._run_decoder(embedding, sparse, list(one.high_resolution), multimask)

    def _run_decoder(self, embedding, sparse, high_resolution, multimask: bool) -> MaskOutput:
        """One image with P prompts, or N images with one each; the best of the proposed masks per prompt."""
        dense = self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embedding)
        decoder, place = self.sam.mask_decoder, self.sam.get_image_wide_positional_embeddings()
        if sam2_decoding.serves(decoder, embedding, sparse):
            decoded = sam2_decoding.decode(decoder, embedding + dense, place, sparse, high_resolution, multimask)
        else:
            decoded = decoder(
                image_embeddings=embedding,
                image_positional_embeddings=place.expand(len(embedding), -1, -1, -1),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                high_resolution_features=high_resolution,
            )
        masks, iou, tokens, object_logits = decoded
        # [P, K, h, w], [P, K], [P, K, C]
        masks, iou, tokens = masks.flatten(0, 1), iou.flatten(0, 1), tokens.flatten(0, 1)
        best = iou.argmax(dim=1)
        rows = torch.arange(best.shape[0], device=best.device)
        return MaskOutput(
            logits=masks[rows, best],
            iou=iou[rows, best],
            object_logits=object_logits.reshape(-1),
            candidates=masks,
            candidate_iou=iou,
            pointers=tokens[rows, best],
        )

    def _empty(self, features: MaskFeatures) -> MaskOutput:
        side = self.image_size // 4
        none = features.embedding.new_zeros
        return MaskOutput(none(0, side, side), none(0), none(0), none(0, 3, side, side), none(0, 3), none(0, 1))

"""BoltzFormer as a mask decoder of grounded models: the state of [SEG] takes the place of the words of a prompt."""

from __future__ import annotations

import torch
from torch import nn

from unimed.models.boltzformer.configuration import BoltzFormerConfig
from unimed.models.boltzformer.decoder import BoltzFormerDecoder
from unimed.models.boltzformer.features import FocalPyramid, PixelDecoder
from unimed.models.boltzformer.layers import Layout
from unimed.models.heads.mask import MaskDecoder, MaskFeatures, MaskOutput, mask_decoder, per_image


class BoltzFormerDecoderConfig(BoltzFormerConfig):
    """Sizes as of BoltzFormer; without edge queries, and attention that draws nothing, so that answers repeat."""

    model_type = "unimed_boltzformer_decoder"

    def __init__(self, edge_queries: int = 0, attention: str = "masked", channels: str = "rgb", **kwargs):
        if edge_queries or attention == "sample":
            raise ValueError("a decoder prompted by [SEG] has no edge queries and draws no positions")
        super().__init__(edge_queries=edge_queries, attention=attention, channels=channels, **kwargs)


@mask_decoder(BoltzFormerDecoderConfig)
class BoltzFormerMaskDecoder(MaskDecoder):
    """Image encoder, pixel decoder and query decoder of BoltzFormer, whose parts keep their names and weights.

    A language vector is the one token of a prompt; a box given instead becomes one by a small network.
    """

    #: A task also trains masks of given boxes.
    learns_boxes = True

    def __init__(self, config: BoltzFormerDecoderConfig):
        super().__init__()
        self.config = config
        self.backbone = FocalPyramid(config)
        self.pixel_decoder = PixelDecoder(config)
        self.decoder = BoltzFormerDecoder(config)
        dim = config.hidden_size
        self.box_token = nn.Sequential(nn.Linear(4, dim), nn.GELU(), nn.Linear(dim, dim))

    @property
    def embedding_dim(self) -> int:
        return self.config.hidden_size

    @property
    def prompt_dim(self) -> int:
        return self.config.hidden_size

    def encode(self, pixels: torch.Tensor) -> MaskFeatures:
        """[B, 3, S, S] -> features of stride 32, and finer ones of stride 16, 8 and 4."""
        features, levels = self.pixel_decoder(self.backbone(pixels.to(self.box_token[0].weight.dtype)))
        return MaskFeatures(levels[0], (*levels[1:], features))

    def decode(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        """Masks [N, S/4, S/4] of language vectors [N, C]: the mean over queries; existence is the object score."""
        prompts = prompts.to(self.box_token[0].weight.dtype)

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            tokens = prompts[rows][:, None]
            valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            levels, layout = [one.embedding, *one.high_resolution[:2]], Layout([len(tokens)], tokens.device)
            logits, existence = self.decoder(levels, one.high_resolution[2], tokens, valid, layout)
            logits = logits.mean(dim=1)
            inside = (logits > 0).to(logits.dtype)
            quality = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
            return MaskOutput(logits=logits, iou=quality, object_logits=existence[:, 0])

        output = per_image(features, image_index, decode_rows)
        if output is None:
            none, side = features.embedding.new_zeros, self.image_size // 4
            return MaskOutput(none(0, side, side), none(0), none(0))
        return output

    def decode_boxes(self, features: MaskFeatures, image_index: torch.Tensor, boxes_xyxy: torch.Tensor) -> MaskOutput:
        """Masks of N boxes given in pixels of the square."""
        weight = self.box_token[0].weight
        return self.decode(features, image_index, self.box_token(boxes_xyxy.to(weight) / self.image_size))

    def decode_tokens(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """[N, 2, C]: the language vector, and the features inside of its mask."""
        weight = self.decode(features, image_index, prompts).logits.sigmoid()[:, None]
        seen = (features.high_resolution[2][image_index] * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-3)
        return torch.stack([prompts.to(seen.dtype), seen], dim=1)

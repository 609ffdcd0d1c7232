"""Mask decoder without SAM: a few convolutions on the pixels, the image tokens of the backbone, and a soft box."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from unimed.models import foreign
from unimed.models.heads.mask import MaskDecoder, MaskFeatures, MaskOutput, mask_decoder, per_image
from unimed.models.heads.medsam_lite import FilmBlock


class LightMaskConfig(PreTrainedConfig):
    """Sizes of the light decoder.

    Args:
        image_size: side of the square it sees, a multiple of 8.
        width: channels at a quarter and an eighth of the side; half of them at the half.
        blocks: FiLM blocks at an eighth of the side.
        heads: attention heads over the image tokens of the backbone.
        token_dim: width of these tokens, which a `GroundedMLLM` fills in; 0 where the backbone has no image tokens of
            its own (it then reads this decoder's features).
    """

    model_type = "unimed_light"

    def __init__(self, image_size: int = 128, width: int = 48, blocks: int = 2, heads: int = 4, token_dim: int = 0,
                 **kwargs):  # fmt: skip
        if min(image_size, width, heads) < 1 or image_size % 8 or width % 8 or width % heads:
            raise ValueError(
                f"image_size {image_size} and width {width} must be multiples of 8 above 0, width of heads ({heads})"
            )
        self.image_size, self.width, self.blocks = image_size, width, blocks
        self.heads, self.token_dim = heads, token_dim
        super().__init__(**foreign.clean(kwargs))


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3x3 convolution, group norm, GELU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(4, outputs), nn.GELU())


def soft_box(boxes: torch.Tensor, size: tuple[int, int], softness: float = 0.03) -> torch.Tensor:
    """How far inside of boxes each cell of a grid lies: boxes [N, 4] (xyxy, fractions) -> [N, 1, h, w] in [0, 1]."""
    height, width = size
    x = (torch.arange(width, device=boxes.device, dtype=torch.float32) + 0.5) / width
    y = (torch.arange(height, device=boxes.device, dtype=torch.float32) + 0.5) / height
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    across = torch.sigmoid((x - x1[:, None]) / softness) * torch.sigmoid((x2[:, None] - x) / softness)
    down = torch.sigmoid((y - y1[:, None]) / softness) * torch.sigmoid((y2[:, None] - y) / softness)
    return (down[:, None, :, None] * across[:, None, None, :]).to(boxes.dtype)


class TokenReader(nn.Module):
    """Places of a grid look at the image tokens of the backbone.

    Tokens carry their own place, so that tiles, thumbnails and any number of them are read alike.
    """

    def __init__(self, width: int, token_dim: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(token_dim)
        self.keys = nn.Linear(token_dim, width)
        self.norm_query = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[1, C, h, w], [N, D] -> [1, C, h, w]."""
        keys = self.keys(self.norm(tokens.to(x.dtype)))[None]
        query = self.norm_query(x.flatten(2).transpose(1, 2))
        found = self.attention(query, keys, keys, need_weights=False)[0]
        return x + found.transpose(1, 2).unflatten(2, x.shape[-2:])


@mask_decoder(LightMaskConfig)
class LightMaskDecoder(MaskDecoder):
    """The cheapest decoder: no image encoder of its own beyond four convolutions.

    The state of [SEG] first says roughly where (a soft box, learnt through the mask alone); a box that is given takes
    its place. Channels at three scales are scaled and shifted by the state (FiLM, arXiv 1709.07871).
    """

    kind = "light"
    #: `MaskFeatures.tokens` are read where the model has them.
    reads_image_tokens = True
    #: A task also trains masks of given boxes.
    learns_boxes = True
    guided_by_boxes = True

    def __init__(self, config: LightMaskConfig):
        super().__init__()
        self.config = config
        width, half = config.width, config.width // 2
        self.to_first = convolution(3, half, 2)
        self.quarter = convolution(half, width, 2)
        self.eighth = convolution(width, width, 2)
        self.reader = TokenReader(width, config.token_dim, config.heads) if config.token_dim else None
        self.box = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        # Where only a box is given, this stands for the words.
        self.no_words = nn.Parameter(torch.zeros(width))
        # One channel for the soft box, two for the place: left and right look alike otherwise.
        self.join = nn.Conv2d(width + 3, width, 1)
        self.coarse = nn.ModuleList(FilmBlock(width, width) for _ in range(config.blocks))
        self.to_quarter = nn.Conv2d(width, width, 1)
        self.block_quarter = FilmBlock(width, width)
        self.to_half = nn.Conv2d(width + 1, half, 1)
        self.block_half = FilmBlock(half, width)
        self.logit = nn.Conv2d(half, 1, 1)

    @property
    def prompt_dim(self) -> int:
        return self.config.width

    @property
    def embedding_dim(self) -> int:
        return self.config.width

    def encode(self, pixels: torch.Tensor) -> MaskFeatures:
        """[B, 3, S, S] -> features at an eighth, and at a quarter and the half of the side."""
        half = self.to_first(pixels.to(self.no_words.dtype))
        quarter = self.quarter(half)
        return MaskFeatures(self.eighth(quarter), (quarter, half))

    def decode(
        self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor, boxes_xyxy=None
    ) -> MaskOutput:
        """Masks [N, S/2, S/2] of language vectors [N, C]; `iou` is the mean probability inside each mask.

        Args:
            boxes_xyxy: [N, 4] in pixels of the square, where the place of each is known; otherwise the vectors say it.
        """
        if not prompts.shape[0]:
            return self._empty(features)
        prompts = prompts.to(self.no_words.dtype)
        if boxes_xyxy is None:
            center, size = self.box(prompts).sigmoid().split(2, dim=-1)
            boxes = torch.cat([center - size / 2, center + size / 2], dim=-1)
        else:
            boxes = boxes_xyxy.to(prompts.dtype) / self.image_size

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            logits = self._logits(one, prompts[rows], boxes[rows])
            probability = torch.sigmoid(logits)
            inside = (logits > 0).to(logits.dtype)
            quality = (probability * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
            return MaskOutput(logits=logits, iou=quality, object_logits=logits.flatten(1).amax(dim=1))

        return per_image(features, image_index, decode_rows)

    def decode_boxes(self, features: MaskFeatures, image_index: torch.Tensor, boxes_xyxy: torch.Tensor) -> MaskOutput:
        """Masks of N boxes given in pixels of the square, without words."""
        prompts = self.no_words.expand(boxes_xyxy.shape[0], -1)
        return self.decode(features, image_index, prompts, boxes_xyxy)

    def decode_tokens(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """[N, 2, C]: the language vector, and the features inside of its soft box."""
        prompts = prompts.to(self.no_words.dtype)
        center, size = self.box(prompts).sigmoid().split(2, dim=-1)
        where = soft_box(torch.cat([center - size / 2, center + size / 2], dim=-1), features.embedding.shape[-2:])
        seen = (features.embedding[image_index] * where).sum((2, 3)) / where.sum((2, 3)).clamp(min=1e-3)
        return torch.stack([prompts, seen], dim=1)

    def _logits(self, one: MaskFeatures, prompts: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        quarter, half = one.high_resolution
        count, (height, width) = prompts.shape[0], one.embedding.shape[-2:]
        x = one.embedding
        if self.reader is not None and one.tokens is not None and one.tokens[0] is not None:
            x = self.reader(x, one.tokens[0])
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(count, -1, -1, -1)
        x = self.join(torch.cat([x.expand(count, -1, -1, -1), place, soft_box(boxes, (height, width))], dim=1))
        for block in self.coarse:
            x = block(x, prompts)
        x = F.interpolate(self.to_quarter(x), quarter.shape[-2:], mode="bilinear", align_corners=False) + quarter
        x = torch.cat([self.block_quarter(x, prompts), soft_box(boxes, quarter.shape[-2:])], dim=1)
        x = F.interpolate(self.to_half(x), half.shape[-2:], mode="bilinear", align_corners=False) + half
        return self.logit(self.block_half(x, prompts))[:, 0]

    def _empty(self, features: MaskFeatures) -> MaskOutput:
        none, side = features.embedding.new_zeros, self.image_size // 2
        return MaskOutput(none(0, side, side), none(0), none(0))

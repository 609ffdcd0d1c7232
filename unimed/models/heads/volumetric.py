"""Volumetric mask decoder: a 3D U-Net of MONAI's blocks with the state of [SEG] at every scale.

Beside slice propagation (`unimed.models.grounded.frames`), which carries a mask from slice to slice, it sees the slices
of a volume together. Single images are volumes of one slice. Language at several scales of a 3D U-Net is the way of
VoxTell (arXiv 2511.11450) and SAT (arXiv 2312.17183), deep supervision and residual blocks are those of nnU-Net.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from unimed.models import foreign
from unimed.models.heads.light import soft_box
from unimed.models.heads.mask import MaskDecoder, MaskFeatures, MaskOutput, mask_decoder, per_image


class VolumetricMaskConfig(PreTrainedConfig):
    """Sizes of the volumetric decoder.

    Args:
        image_size: side of the square slices are seen at, a multiple of 2 ** (len(widths) - 1).
        widths: channels at the full side, the half, the quarter, ...
        prompt_width: length of a language vector.
        window: slices that are seen together; longer volumes are read by windows that slide over them.
        overlap: fraction of a window that the next one sees again.
        boxes: whether masks of given boxes are learnt beside those of words, slice by slice; more than half of the cost
            of a training step.
    """

    model_type = "unimed_volumetric"

    def __init__(self, image_size: int = 128, widths=(16, 32, 64, 96), prompt_width: int = 64, window: int = 32,
                 overlap: float = 0.25, boxes: bool = True, **kwargs):  # fmt: skip
        widths = list(widths)
        if len(widths) < 2 or min(image_size, prompt_width, window, *widths) < 1 or image_size % 2 ** (len(widths) - 1):
            raise ValueError(f"image_size {image_size} must be a multiple of {2 ** (len(widths) - 1)}, sizes above 0")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is a fraction of a window from 0 to below 1, got {overlap}")
        self.image_size, self.widths, self.prompt_width = image_size, widths, prompt_width
        self.window, self.overlap, self.boxes = window, overlap, boxes
        super().__init__(**foreign.clean(kwargs))


class Film3d(nn.Module):
    """Channels of a volume scaled and shifted by a language vector (FiLM, arXiv 1709.07871), and the place of a box."""

    def __init__(self, channels: int, prompt_width: int):
        super().__init__()
        self.film = nn.Linear(prompt_width, 2 * channels)
        self.place = nn.Conv3d(1, channels, 1, bias=False)

    def forward(self, x: torch.Tensor, prompts: torch.Tensor, where: torch.Tensor | None) -> torch.Tensor:
        """[N, C, D, h, w], [N, P], [N, 1, h, w] or None -> [N, C, D, h, w]."""
        scale, shift = self.film(prompts)[..., None, None, None].chunk(2, dim=1)
        x = x * (1 + scale) + shift
        return x if where is None else x + self.place(where[:, :, None].expand(-1, -1, x.shape[2], -1, -1))


@mask_decoder(VolumetricMaskConfig)
class VolumetricMaskDecoder(MaskDecoder):
    """Residual 3D U-Net whose way up is prompted at every scale.

    In-plane sides are halved from scale to scale and the number of slices never is, so that volumes of any depth and
    single images pass; context over slices comes from 3 x 3 x 3 kernels at every scale.
    """

    #: `decode_stack` reads the slices of a volume together.
    reads_volumes = True
    #: A task also trains masks of given boxes.
    learns_boxes = True
    guided_by_boxes = True

    def __init__(self, config: VolumetricMaskConfig):
        super().__init__()
        try:
            from monai.networks.blocks.dynunet_block import UnetResBlock
        except ImportError as error:
            raise ImportError("the volumetric decoder needs MONAI; install unimed[eval]") from error
        self.config = config
        self.learns_boxes = config.boxes
        widths, norm = config.widths, ("instance", {"affine": True})
        flat = (1, 2, 2)
        self.down = nn.ModuleList(
            UnetResBlock(3, before, after, 3, flat if level else 1, norm)
            for level, (before, after) in enumerate(zip([3, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(
            UnetResBlock(3, below + here, here, 3, 1, norm) for here, below in zip(widths, widths[1:], strict=False)
        )
        self.film = nn.ModuleList(Film3d(width, config.prompt_width) for width in widths)
        self.logit = nn.ModuleList(nn.Conv3d(width, 1, 1) for width in widths[:-1])
        self.no_words = nn.Parameter(torch.zeros(config.prompt_width))

    @property
    def prompt_dim(self) -> int:
        return self.config.prompt_width

    @property
    def embedding_dim(self) -> int:
        return self.config.widths[-1]

    def encode(self, pixels: torch.Tensor) -> MaskFeatures:
        """[B, 3, S, S], each a volume of one slice -> features of the coarsest scale, and of the finer ones."""
        maps = self._down(pixels[:, :, None])
        return MaskFeatures(maps[-1][:, :, 0], tuple(level[:, :, 0] for level in maps[:-1]), pixels)

    def _down(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, D, S, S] -> maps of every scale, fine to coarse."""
        maps = [volume.to(self.no_words.dtype)]
        for block in self.down:
            maps.append(block(maps[-1]))
        return maps[1:]

    def _masks(self, maps: list[torch.Tensor], prompts: torch.Tensor, boxes: torch.Tensor | None):
        """Logits [N, D, S, S] of one volume's maps and N prompts, and coarser ones, fine to coarse."""
        count = len(prompts)

        def where(x):
            return None if boxes is None else soft_box(boxes / self.image_size, x.shape[-2:])

        x = maps[-1].expand(count, -1, -1, -1, -1)
        x = self.film[-1](x, prompts, where(x))
        logits = []
        for level in reversed(range(len(self.up))):
            skip = maps[level].expand(count, -1, -1, -1, -1)
            x = F.interpolate(x, skip.shape[-3:], mode="trilinear", align_corners=False)
            x = self.film[level](self.up[level](torch.cat([x, skip], dim=1)), prompts, where(skip))
            logits.append(self.logit[level](x)[:, 0])
        return logits[-1], logits[-2::-1]

    def decode(
        self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor, boxes_xyxy=None
    ) -> MaskOutput:
        """Masks [N, S, S] of language vectors [N, C] in single images.

        Args:
            boxes_xyxy: [N, 4] in pixels of the square, where the place of each is known.
        """
        prompts = prompts.to(self.no_words.dtype)

        def decode_rows(one: MaskFeatures, rows: torch.Tensor) -> MaskOutput:
            maps = [level[:, :, None] for level in (*one.high_resolution, one.embedding)]
            boxes = None if boxes_xyxy is None else boxes_xyxy[rows].to(prompts.dtype)
            logits, coarser = self._masks(maps, prompts[rows], boxes)
            return _output(logits[:, 0], [level[:, 0] for level in coarser])

        output = per_image(features, image_index, decode_rows)
        if output is None:
            none, side = features.embedding.new_zeros, self.image_size
            return MaskOutput(none(0, side, side), none(0), none(0))
        return output

    def decode_boxes(self, features: MaskFeatures, image_index: torch.Tensor, boxes_xyxy: torch.Tensor) -> MaskOutput:
        """Masks of N boxes given in pixels of the square, without words."""
        return self.decode(features, image_index, self.no_words.expand(len(boxes_xyxy), -1), boxes_xyxy)

    def decode_tokens(self, features: MaskFeatures, image_index: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """[N, 1, C]: the language vector."""
        return prompts.to(self.no_words.dtype)[:, None]

    def decode_stack(self, pixels: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        """Masks of N language vectors [N, C] in the slices [D, 3, S, S] of one volume, seen together.

        While training the slices are one patch, cut where it is longer than a window; else windows slide over them,
        blended where they overlap (`monai.inferers.sliding_window_inference`), so that memory does not grow with the
        number of slices. A window of one slice is the same decoder without what neighbors tell.

        Returns:
            `MaskOutput` of N * D masks, all slices of a prompt one after the other.
        """
        prompts, volume = prompts.to(self.no_words.dtype), pixels.transpose(0, 1)[None]
        if self.training or len(pixels) <= self.config.window:
            parts = [self._masks(self._down(part), prompts, None) for part in volume.split(self.config.window, dim=2)]
            logits = torch.cat([fine for fine, _ in parts], dim=1)
            coarser = [torch.cat(levels, dim=1) for levels in zip(*(deep for _, deep in parts), strict=True)]
        else:
            from monai.inferers import sliding_window_inference

            coarser = []
            logits = sliding_window_inference(
                volume, (self.config.window, *pixels.shape[-2:]), 1,
                lambda part: self._masks(self._down(part), prompts, None)[0][None],
                overlap=self.config.overlap, mode="gaussian",
            )[0]  # fmt: skip
        return _output(logits.flatten(0, 1), [level.flatten(0, 1) for level in coarser])


def _output(logits: torch.Tensor, coarser: list[torch.Tensor]) -> MaskOutput:
    """Masks [N, S, S] with the mean probability inside, and the coarser ones brought to their size."""
    inside = (logits > 0).to(logits.dtype)
    quality = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    deep = None
    if coarser:
        sized = [F.interpolate(x[:, None], logits.shape[-2:], mode="bilinear", align_corners=False) for x in coarser]
        deep = torch.cat(sized, dim=1)
    return MaskOutput(logits=logits, iou=quality, object_logits=logits.flatten(1).amax(dim=1), deep_logits=deep)

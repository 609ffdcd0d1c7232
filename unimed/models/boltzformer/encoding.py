"""Images to features, once per image whatever is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unimed.models.boltzformer.layers import note


@dataclass
class ImageFeatures:
    """Images encoded once: mask features [B, D, H/4, W/4], and three maps [B, D, h, w] of stride 32, 16, 8.

    `pixels` [B, 3, H, W], normalised, are kept for a model that sharpens its masks by them.
    """

    mask_features: torch.Tensor
    levels: list[torch.Tensor]
    pixels: torch.Tensor | None = None

    def select(self, places: Sequence[int]) -> ImageFeatures:
        """Some of the images."""
        places = list(places)
        pixels = None if self.pixels is None else self.pixels[places]
        return ImageFeatures(self.mask_features[places], [level[places] for level in self.levels], pixels)

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Features of several calls as those of one."""
        levels = [torch.cat(level) for level in zip(*(part.levels for part in parts), strict=True)]
        pixels = None if parts[0].pixels is None else torch.cat([part.pixels for part in parts])
        return cls(torch.cat([part.mask_features for part in parts]), levels, pixels)


class ImageEncoder:
    """Mixin of models with `pixel_mean`, `pixel_std`, `backbone` and `pixel_decoder`."""

    def encode_images(self, pixel_values, record: dict | None = None) -> ImageFeatures:
        """[B, 3, H, W] in 0..255 to features that any number of prompts share.

        Without gradients on a CPU images are taken one at a time: it is no slower there, needs less memory, and the
        last digits of an image do not depend on its neighbours, nor then which positions are sampled.
        """
        one_by_one = len(pixel_values) > 1 and record is None and not torch.is_grad_enabled()
        if one_by_one and self.pixel_mean.device.type == "cpu":
            return ImageFeatures.join([self.encode_images(image[None]) for image in pixel_values])
        pixels = pixel_values.to(self.pixel_mean.device, self.pixel_mean.dtype)
        pixels = (pixels - self.pixel_mean) / self.pixel_std
        pyramid = self.backbone(pixels)
        mask_features, levels = self.pixel_decoder(pyramid, record)
        for i, value in enumerate(pyramid):
            note(record, f"res{i + 2}", value)
        return ImageFeatures(mask_features, levels, pixels if self.config.learned_upsampling else None)

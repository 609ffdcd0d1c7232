"""The optional last step of BiomedParse v2: one sharper map out of all query maps and the image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class OutputUpsampler(nn.Module):
    """Twice the resolution, from query maps and the image itself; averaged with their enlarged mean.

    No published weights use it; it is there for training.

    Args:
        queries: maps of one item. channels: width in between.
    """

    def __init__(self, queries: int, channels: int = 16):
        super().__init__()
        self.output_deconv = nn.ConvTranspose2d(queries + 3, channels, 4, stride=2, padding=1)
        self.layer_norm = nn.GroupNorm(1, channels)
        self.output_conv = nn.Conv2d(channels + 3, channels, 1)
        self.output_conv2 = nn.Conv2d(channels, 1, 1)

    def forward(self, logits, images):
        """[N, Q, h, w] and normalised images [N, 3, 4h, 4w] -> [N, 1, 2h, 2w]."""
        height, width = logits.shape[-2:]

        def small(factor):
            size = (factor * height, factor * width)
            return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

        hidden = F.gelu(self.layer_norm(self.output_deconv(torch.cat((small(1), logits), 1))))
        hidden = F.gelu(self.output_conv(torch.cat((small(2), hidden), 1)))
        mean = F.interpolate(logits.mean(1, keepdim=True), scale_factor=2, mode="bilinear", align_corners=False)
        return (self.output_conv2(hidden) + mean) / 2

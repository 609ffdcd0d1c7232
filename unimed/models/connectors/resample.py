"""Resampling: fewer visual tokens before the projector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from unimed.models.connectors.configuration import ConnectorConfig, ConnectorError


def resample(tokens: torch.Tensor, config: ConnectorConfig, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """[B, N, C] in raster order -> [B, M, F]; see `ConnectorConfig` for the methods.

    `grid` is (rows, columns) with rows * columns = N; without it the tokens are taken for a square.

    Raises:
        ConnectorError: N cannot be divided by the rate, or is no grid that can be pooled.
    """
    batch, count, width = tokens.shape
    rate = config.resample_rate
    if config.resample_method == "projection":
        if count % rate:
            raise ConnectorError(f"resample_rate {rate} does not divide the {count} visual tokens of an image")
        return tokens.reshape(batch, count // rate, width * rate)
    if not config.is_pooling:
        return tokens
    window = 2 if config.is_reference else math.isqrt(rate)
    side = math.isqrt(count)
    rows, columns = grid or (side, side)
    if rows * columns != count or rows % window or columns % window:
        raise ConnectorError(
            f"{config.resample_method} with windows of {window}x{window} cannot divide {count} tokens as a grid of "
            f"{rows}x{columns}; hand over `grid` or choose resample_method projection"
        )
    image = tokens.transpose(1, 2).reshape(batch, width, rows, columns)
    pool = F.avg_pool2d if config.resample_method == "avgpool" else F.max_pool2d
    return pool(image, window).flatten(2).transpose(1, 2)

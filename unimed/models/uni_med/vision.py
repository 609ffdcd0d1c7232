"""EVA-ViT as Uni-Med looks at images: timm's Eva, without its last block, its final norm and its head."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.eva import Eva
from torch import nn
from torch.nn import functional as F


class ImageSizeError(ValueError):
    """An image that is not of the size the encoder was built for."""


class Float32LayerNorm(nn.LayerNorm):
    """Computed in float32 whatever comes in; gives back the type that came in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps).to(
            x.dtype
        )


class EvaEncoder(Eva):
    """[B, 3, S, S], normalised as CLIP does -> [B, 1 + (S / patch)^2, dim], the class token first.

    The output is the residual stream after the last block: no norm stands behind it. Absolute positions, biases on
    queries and values only, exact GELU, norms with eps 1e-6.
    """

    def __init__(self, image_size: int, patch_size: int, dim: int, depth: int, heads: int, mlp_hidden: int):
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            # Half a unit more, because timm cuts the product to a whole number.
            mlp_ratio=(mlp_hidden + 0.5) / dim,
            num_classes=0,
            global_pool="",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.norm = nn.Identity()
        self.fc_norm = nn.Identity()
        self.image_size = image_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Raises:
        ImageSizeError: the images are not [B, 3, S, S] with the S of the configuration.
        """
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, self.image_size, self.image_size):
            raise ImageSizeError(f"images must be [B, 3, {self.image_size}, {self.image_size}], got {[*pixels.shape]}")
        return self.forward_features(pixels)


def resize_positions(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Position embedding [1, 1 + n^2, C] -> [1, tokens, C] with tokens = 1 + m^2.

    The row of the class token stays, the grid is scaled bicubically in float32 (not antialiased), as EVA does. Equal
    sizes give the tensor itself.

    Raises:
        ImageSizeError: either side is no square grid with one class token.
    """
    if positions.shape[1] == tokens:
        return positions
    old, new = (int((count - 1) ** 0.5) for count in (positions.shape[1], tokens))
    if old**2 + 1 != positions.shape[1] or new**2 + 1 != tokens:
        raise ImageSizeError(f"positions of {positions.shape[1]} tokens cannot become {tokens}: both are 1 + n*n")
    positions = positions.float()
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

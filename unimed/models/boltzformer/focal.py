"""FocalNet's pyramid for inference on a CPU: the numbers of transformers' modules, with less memory moved.

Maps stay as rows of pixels, channels last: nothing is turned between projections and convolutions, convolutions of one
channel each are several times as fast this way, and what is wide inside of a block is made for some rows at a time.

Yang et al., Focal Modulation Networks, NeurIPS 2022. Weights stay where they are, in `FocalNetModel`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

#: Inner values of a block made at once; they fit into the caches of a core.
INNER_VALUES = 1 << 19


def serves(pyramid, pixels: torch.Tensor) -> bool:
    """Whether `maps` can stand for `pyramid` here: pixels [B, 3, H, W] on a CPU, float32, nothing is learnt."""
    if pixels.device.type != "cpu" or pixels.dtype != torch.float32 or pixels.requires_grad:
        return False
    if torch.is_grad_enabled() or pyramid.training or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if any(side % (4 << (len(pyramid.stages) - 1)) for side in pixels.shape[-2:]):
        return False  # such maps are padded before they are halved
    return all(_usual(layer) for stage in pyramid.stages for layer in stage.layers)


def _usual(layer) -> bool:
    """Whether a block is FocalNet's own: nothing is wrapped around the weights that are read in parts."""
    modulation = layer.modulation
    convolutions = [modulation.projection_context, *(convolve for convolve, _ in modulation.focal_layers)]
    plain = type(modulation.projection_in) is nn.Linear and {type(one) for one in convolutions} == {nn.Conv2d}
    plain = plain and modulation.projection_in.weight.dtype == torch.float32
    return plain and layer.use_post_layernorm and not modulation.use_post_layernorm_in_modulation


def maps(pyramid, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Maps of every stage, [B, C_i, H_i, W_i] with channels last in memory; see `FocalPyramid`."""
    embeddings, found = pyramid.embeddings, []
    hidden = embeddings.norm(_rows(embeddings.patch_embeddings.projection(pixels)))
    for stage, norm in zip(pyramid.stages, pyramid.norms, strict=True):
        for layer in stage.layers:
            hidden = _block(layer, hidden)
        found.append(norm(hidden).permute(0, 3, 1, 2))
        if stage.downsample is not None:
            hidden = stage.downsample.norm(_rows(stage.downsample.projection(hidden.permute(0, 3, 1, 2))))
    return found


def _rows(image: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, H, W, C], contiguous."""
    return image.permute(0, 2, 3, 1).contiguous()


def _block(layer, hidden: torch.Tensor) -> torch.Tensor:
    """A block of FocalNet, [B, H, W, C] to the same; what comes in is kept."""
    changed = layer.norm1(_modulated(layer.modulation, hidden)).mul_(layer.gamma_1)
    hidden = changed.add_(hidden)
    rows = hidden.view(-1, hidden.shape[-1])
    inner = layer.mlp.fc1.out_features
    for part in rows.split(max(INNER_VALUES // inner, 1)):
        part.add_(layer.norm2(layer.mlp.fc2(F.gelu(layer.mlp.fc1(part)))).mul_(layer.gamma_2))
    return hidden


def _modulated(modulation, hidden: torch.Tensor) -> torch.Tensor:
    """Focal modulation: every pixel is weighed by contexts of growing fields around it, and by that of the image."""
    width, levels = hidden.shape[-1], modulation.focal_level
    weights = modulation.projection_in.weight.split((width, width, levels + 1))
    biases = modulation.projection_in.bias.split((width, width, levels + 1))
    query, context, gates = (F.linear(hidden, w, b) for w, b in zip(weights, biases, strict=True))
    if modulation.normalize_modulator:
        gates = gates / (levels + 1)
    every = None
    for level, (convolve, _) in enumerate(modulation.focal_layers):
        context = F.conv2d(context.permute(0, 3, 1, 2), convolve.weight, None, 1, convolve.padding, 1, width)
        context = F.gelu(context.permute(0, 2, 3, 1))
        weighted = context * gates[..., level : level + 1]
        every = weighted if every is None else every.add_(weighted)
    overall = F.gelu(context.mean((1, 2), keepdim=True))
    every = every.add_(overall * gates[..., levels:])
    mix = modulation.projection_context
    modulator = F.linear(every, mix.weight[:, :, 0, 0], mix.bias)
    return modulation.projection_out(modulator.mul_(query))

"""SAM 2's image encoder for inference on a CPU: the numbers of transformers' module, with less memory moved.

A window of Hiera's first stages sees nothing outside of itself, so a tile of windows is taken through all blocks of
these stages while it lies in the caches. Projections read no padding, the position codes that no decoder of ours reads
are not made, and the convolutions that follow one another without anything between them are one.

Ryali et al., Hiera, ICML 2023; Ravi et al., SAM 2, 2024. Weights stay where they are, in `Sam2VideoModel`.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

#: Tokens of a tile, and rows of what is computed at once elsewhere: their inner values fit into the caches of a core.
TILE_TOKENS, CHUNK_ROWS = 1024, 1024


def serves(encoder, pixels: torch.Tensor) -> bool:
    """Whether `encode` can stand for `encoder` here: pixels [B, 3, S, S] on a CPU, float32, nothing is learnt."""
    if pixels.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    backbone, neck = encoder.backbone.config, encoder.neck.config
    window = backbone.window_size_per_stage[0]
    grid = [side // stride for side, stride in zip(pixels.shape[-2:], backbone.patch_stride, strict=True)]
    usual = (neck.fpn_kernel_size, neck.fpn_stride, neck.fpn_padding) == (1, 1, 0)
    # Four stages, of which the decoder reads the first two as they are.
    usual = usual and len(encoder.neck.convs) == 4 and set(neck.fpn_top_down_levels) <= {2, 3}
    usual = usual and encoder.dtype == torch.float32 and not encoder.training
    return usual and all(side % window == 0 and side % 8 == 0 for side in grid)


def encode(encoder, decoder, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps of images, as the mask decoder takes them.

    Args:
        encoder: `Sam2VisionModel`. decoder: `Sam2MaskDecoder`, whose first convolutions read the finer maps.
        pixels: [B, 3, S, S], normalized.

    Returns:
        coarse [B, C, S/16, S/16], fine [B, C/8, S/4, S/4] and middle [B, C/4, S/8, S/8].
    """
    maps = [stages(encoder.backbone, one[None]) for one in pixels]
    found = [_neck(encoder.neck, decoder, levels) for levels in maps]
    return tuple(torch.cat(level) for level in zip(*found, strict=True))


def stages(backbone, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Output of every stage, [1, H, W, C], of one image."""
    hidden = backbone.patch_embed(pixels)
    hidden = _placed(hidden, backbone.pos_embed[0], backbone.pos_embed_window[0])
    ends, ready = list(backbone.stage_ends), {}
    first = _local(backbone, hidden.shape[1:3])
    if first:
        ready = _in_tiles(backbone, hidden, first)
        hidden = ready[first - 1]
    for number, block in enumerate(backbone.blocks):
        if number >= first:
            hidden = _block(block, hidden)
            ready[number] = hidden
    return [ready[end] for end in ends]


def _placed(hidden, coarse, window):
    """Patches [1, H, W, C] with their position: a coarse map [C, h, w], stretched, and one of a window [C, s, s]."""
    height, width = hidden.shape[1:3]
    rows, columns = (_stretch(old, new, coarse) for old, new in zip(coarse.shape[1:], (height, width), strict=True))
    place = torch.einsum("Hh,chw->Hwc", rows, coarse)
    place = torch.einsum("Ww,Hwc->HWc", columns, place)
    side = window.shape[-1]
    tiled = place.view(height // side, side, width // side, side, -1) + window.permute(1, 2, 0)[:, None]
    return hidden + tiled.reshape(1, height, width, -1)


def _stretch(old: int, new: int, like):
    """The matrix [new, old] of a bicubic stretch."""
    unit = torch.eye(old, dtype=torch.float32, device=like.device)[None, :, :, None]
    return F.interpolate(unit, (new, 1), mode="bicubic")[0, :, :, 0].T.to(like.dtype)


def _local(backbone, grid) -> int:
    """How many of the first blocks see nothing outside of their window of the first one."""
    count, (height, width) = 0, grid
    side = backbone.blocks[0].window_size
    for block in backbone.blocks:
        if not block.window_size or side % block.window_size or height % block.window_size or width % block.window_size:
            break
        if block.query_stride and block.window_size % block.query_stride[0]:
            break
        if block.query_stride:
            side, height, width = (length // block.query_stride[0] for length in (side, height, width))
        count += 1
    return count


def _in_tiles(backbone, hidden, count: int) -> dict[int, torch.Tensor]:
    """Outputs of those of the first `count` blocks that end a stage, and of the last of them."""
    side = backbone.blocks[0].window_size
    kept = {count - 1, *(end for end in backbone.stage_ends if end < count)}
    columns = max(side, min(hidden.shape[2], TILE_TOKENS // side // side * side))
    rows: dict[int, list] = {number: [] for number in kept}
    for strip in hidden.split(side, dim=1):
        parts: dict[int, list] = {number: [] for number in kept}
        for tile in strip.split(columns, dim=2):
            for number in range(count):
                tile = _block(backbone.blocks[number], tile)
                if number in kept:
                    parts[number].append(tile)
        for number, found in parts.items():
            rows[number].append(torch.cat(found, dim=2))
    return {number: torch.cat(found, dim=1) for number, found in rows.items()}


def _block(block, hidden):
    """One block on [1, H, W, C]."""
    normed = block.layer_norm1(hidden)
    stride = block.query_stride
    if block.dim != block.dim_out:
        hidden = _pooled(block.proj(normed), stride)
    hidden = (hidden + _attended(block, normed)).contiguous()
    mlp = block.mlp
    for part in hidden.flatten(0, 2).split(CHUNK_ROWS):  # views: the sum above is ours to write into
        part += mlp.proj_out(mlp.activation(mlp.proj_in(block.layer_norm2(part))))
    return hidden


def _attended(block, normed):
    attention, stride, side = block.attn, block.query_stride, block.window_size
    heads, (_, height, width, _) = attention.num_attention_heads, normed.shape
    qkv = attention.qkv(normed)
    across = down = 1
    if side:
        more, wider = (-height) % side, (-width) % side
        if more or wider:
            # A token of padding is zero before the projection.
            empty = attention.qkv(normed.new_zeros(1, normed.shape[-1]))[0]
            whole = empty.expand(1, height + more, width + wider, -1).clone()
            whole[:, :height, :width] = qkv
            qkv = whole
        down, across = qkv.shape[1] // side, qkv.shape[2] // side
        qkv = qkv.view(down, side, across, side, -1).transpose(1, 2).flatten(0, 1)  # [windows, side, side, 3C]
    query, key, value = qkv.chunk(3, dim=-1)
    if stride:
        query = _pooled(query, stride)
    shape = query.shape
    # [windows, heads, tokens, C / heads]
    query, key, value = (one.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    mixed = mixed.transpose(1, 2).reshape(shape)
    if side:
        mixed = mixed.unflatten(0, (down, across)).transpose(1, 2)  # [down, side, across, side, C]
        mixed = mixed.reshape(1, down * shape[1], across * shape[2], -1)
        mixed = mixed[:, : height // (stride[0] if stride else 1), : width // (stride[1] if stride else 1)]
    return attention.proj(mixed)


def _pooled(values, stride):
    """Largest of every `stride` field of [N, H, W, C]."""
    if not stride:
        return values
    largest, (height, width) = (
        None,
        (length - length % step for length, step in zip(values.shape[1:3], stride, strict=True)),
    )
    # Slices, not `amax` over two axes of a view, which takes ten times as long.
    for row in range(stride[0]):
        for column in range(stride[1]):
            one = values[:, row : height : stride[0], column : width : stride[1]]
            largest = one if largest is None else torch.maximum(largest, one)
    return largest


def _neck(neck, decoder, levels):
    """Coarse, fine and middle map [1, C, h, w] of the outputs of the stages."""
    sides = [_weights(conv) for conv in reversed(neck.convs)]
    coarse = F.linear(levels[2], *sides[2])
    if 2 in neck.fpn_top_down_levels:
        below = F.linear(levels[3], *sides[3])
        coarse = coarse + below.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    found = [coarse.permute(0, 3, 1, 2)]
    for level, side, conv in ((levels[0], sides[0], decoder.conv_s0), (levels[1], sides[1], decoder.conv_s1)):
        second, offset = _weights(conv)
        joined = second @ side[0], second @ side[1] + offset
        found.append(F.linear(level, *joined).permute(0, 3, 1, 2))
    return [one.contiguous() for one in found]


def _weights(conv):
    """Weight [out, in] and bias of a convolution of one pixel."""
    return conv.weight[:, :, 0, 0], conv.bias

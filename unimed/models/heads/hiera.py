"""SAM 2's image encoder for inference on a CPU: the numbers of transformers' module, with less memory moved.

A window of Hiera's first stages sees nothing outside of itself, so a tile of windows is taken through all blocks of
these stages while it lies in the caches. Projections read no padding, the position codes that no decoder of ours reads
are not made, and the convolutions that follow one another without anything between them are one.

Ryali et al., Hiera, ICML 2023; Ravi et al., SAM 2, 2024. Weights stay where they are, in `Sam2VideoModel`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

#: Tokens of a tile, and rows of what is computed at once elsewhere: their inner values fit into the caches of a core.
TILE_TOKENS, CHUNK_ROWS = 4096, 1024


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
    neck, backbone = encoder.neck, encoder.backbone
    sides = [_weights(conv) for conv in reversed(neck.convs)]
    # The decoder's first convolutions follow those of the neck, without anything between them.
    for level, conv in enumerate((decoder.conv_s0, decoder.conv_s1)):
        second, offset = _weights(conv)
        sides[level] = second @ sides[level][0], second @ sides[level][1] + offset
    readers, found = dict(zip(backbone.stage_ends, sides, strict=True)), []
    for one in pixels:
        fine, middle, coarse, below = stages(backbone, one[None], readers)
        if 2 in neck.fpn_top_down_levels:
            coarse = coarse + below.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        found.append([level.permute(0, 3, 1, 2) for level in (coarse, fine, middle)])  # channels last
    return tuple(found[0]) if len(found) == 1 else tuple(torch.cat(level) for level in zip(*found, strict=True))


def stages(backbone, pixels: torch.Tensor, readers: dict) -> list[torch.Tensor]:
    """What `readers` make of the output of every stage of one image, each [1, H, W, C].

    Args:
        readers: {number of the last block of a stage: weight and bias}.
    """
    patches = backbone.patch_embed(pixels)
    height, width = patches.shape[1:3]
    places, count, made = _Places(backbone, height, width), _local(backbone, (height, width)), {}

    def run(hidden, numbers) -> dict[int, torch.Tensor]:
        """What is read on the way, and as number -1 the output of the last block."""
        found = {}
        for number in numbers:
            hidden = _block(backbone.blocks[number], hidden)
            if number in readers:
                found[number] = F.linear(hidden, *readers[number])
        return found | {-1: hidden}

    # Windows that a tile is made of, from all of the width to one.
    side = backbone.blocks[0].window_size if count else height
    rows, columns = max(side, TILE_TOKENS // width // side * side), width
    if count and rows == side:
        columns = max(side, min(width, TILE_TOKENS // side // side * side))
    for top in range(0, height, rows):
        strip = []
        for left in range(0, width, columns):
            part = patches[:, top : top + rows, left : left + columns]
            strip.append(run(places(top, left, *part.shape[1:3]).add_(part), range(count)))
        for number in strip[0]:
            made.setdefault(number, []).append(torch.cat([one[number] for one in strip], dim=2))
    made = {number: torch.cat(parts, dim=1) for number, parts in made.items()}
    made |= run(made[-1], range(count, len(backbone.blocks)))
    return [made[end] for end in backbone.stage_ends]


class _Places:
    """Positions of patches: a coarse map [C, h, w], stretched, and one of a window [C, s, s]."""

    def __init__(self, backbone, height: int, width: int):
        coarse = backbone.pos_embed[0]
        self.rows = _stretch(coarse.shape[1], height, coarse)
        self.across = torch.einsum("Ww,chw->hWc", _stretch(coarse.shape[2], width, coarse), coarse)
        self.window = backbone.pos_embed_window[0].permute(1, 2, 0)

    def __call__(self, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """[1, height, width, C] of a part that begins with a window and ends with one."""
        place = torch.tensordot(self.rows[top : top + height], self.across[:, left : left + width], dims=1)
        side = len(self.window)
        place.view(height // side, side, width // side, side, -1).add_(self.window[:, None])
        return place[None]


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


def _block(block, hidden):
    """One block on [1, H, W, C], which is ours to write into."""
    mlp, rows = block.mlp, block.window_size or hidden.shape[1]
    strips = [_with_attention(block, strip) for strip in hidden.split(rows, dim=1)]
    if block.dim != block.dim_out:
        hidden = torch.cat(strips, dim=1) if len(strips) > 1 else strips[0]
    for part in hidden.view(-1, hidden.shape[-1]).split(CHUNK_ROWS):
        _add_product(part, mlp.activation(mlp.proj_in(block.layer_norm2(part))), mlp.proj_out)
    return hidden


def _add_product(into, values, linear) -> None:
    """Add `linear` of `values` [N, K] to `into` [N, C], in place and without a place for the product."""
    if type(linear) is nn.Linear:
        into.add_(linear.bias).addmm_(values, linear.weight.T)
    else:
        into.add_(linear(values))


def _with_attention(block, hidden):
    """`hidden` [1, h, W, C] and what its attention adds; it is overwritten where the block keeps its channels."""
    normed = block.layer_norm1(hidden)
    if block.dim != block.dim_out:
        hidden = _pooled(block.proj(normed), block.query_stride)
    hidden += _attended(block, normed)
    return hidden


def _attended(block, normed):
    """Attention within all of [1, h, W, C], or within windows; these are one row, the last of which may be cut."""
    attention, stride, side = block.attn, block.query_stride, block.window_size
    _, height, width, channels = normed.shape
    down, across = (side, -(-width // side)) if side else (height, 1)
    step = side or width
    whole = (height, width) == (down, across * step)
    if whole and across > 1:
        normed = normed.view(down, across, step, channels).transpose(0, 1).contiguous()  # [windows, s, s, C]
    qkv = attention.qkv(normed)
    if not whole:
        # A token of padding is zero before the projection, and its bias after it.
        given, qkv = qkv[0], qkv.new_empty(across, side, side, qkv.shape[-1])
        for number, window in enumerate(given.split(side, dim=1)):
            qkv[number, :height, : window.shape[1]] = window
        qkv[:, height:] = attention.qkv.bias
        qkv[-1, :, width - (across - 1) * side :] = attention.qkv.bias
    query, key, value = qkv.chunk(3, dim=-1)
    if stride:
        query = _pooled(query, stride)
    _, down, step, _ = query.shape
    # [windows, heads, tokens, C / heads]
    query, key, value = (
        one.flatten(1, 2).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for one in (query, key, value)
    )
    if not side:  # every token is read four thousand times
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    mixed = attention.proj(mixed.transpose(1, 2).flatten(2)).view(across, down, step, -1)
    mixed = mixed.transpose(0, 1).reshape(1, down, across * step, -1)
    return mixed[:, : height // (stride[0] if stride else 1), : width // (stride[1] if stride else 1)]


def _pooled(values, stride):
    """Largest of every `stride` field of [N, H, W, C]."""
    if not stride:
        return values
    height, width = (length - length % step for length, step in zip(values.shape[1:3], stride, strict=True))
    largest = values[:, : height : stride[0], : width : stride[1]].clone()
    # Slices, not `amax` over two axes of a view, which takes ten times as long.
    for row in range(stride[0]):
        for column in range(stride[1]):
            one = values[:, row : height : stride[0], column : width : stride[1]]
            torch.maximum(largest, one, out=largest)
    return largest


def _weights(conv):
    """Weight [out, in] and bias of a convolution of one pixel."""
    return conv.weight[:, :, 0, 0], conv.bias

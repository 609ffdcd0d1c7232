"""SAM 2's mask decoder for inference on a CPU: the numbers of transformers' module, with less computed and moved.

Few tokens and thousands of places of an image attend to each other. What a head projects at every place is moved to the
side of the tokens: a score is `(q Wk) x` and not `q (Wk x)`, so that no key, value or query of a place is made. Pixels
of the finer maps stay beside the place they belong to, so that a transposed convolution is a matrix product.

Ravi et al., SAM 2, 2024; Kirillov et al., Segment Anything, 2023. Weights stay where they are, in `Sam2VideoModel`.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

#: With more tokens than this (many points in one prompt), moving projections to their side does not pay.
MOST_TOKENS = 16


def serves(decoder, embedding: torch.Tensor, sparse: torch.Tensor) -> bool:
    """Whether `decode` can stand for `decoder` here: one image on a CPU, float32, nothing is learnt."""
    if embedding.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    tokens = 2 + decoder.num_mask_tokens + sparse.shape[2]
    usual = decoder.mask_tokens.weight.dtype == embedding.dtype == torch.float32 and not decoder.training
    return usual and len(embedding) == 1 and tokens <= MOST_TOKENS


def decode(decoder, embedding, place, sparse, high_resolution, multimask: bool):
    """Masks of P prompts in one image.

    Args:
        decoder: `Sam2VideoMaskDecoder`.
        embedding: [1, C, h, w], with what stands for "no mask" and "no memory" added.
        place: [1, C, h, w], codes of positions.
        sparse: [1, P, K, C], the tokens of each prompt.
        high_resolution: [1, C/8, 4h, 4w] and [1, C/4, 2h, 2w].

    Returns:
        masks [1, P, K, 4h, 4w], IoU [1, P, K], tokens of masks [1, P, K, C], object scores [1, P, 1].
    """
    height, width = embedding.shape[-2:]
    own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    keys, codes = (one[0].flatten(1).T.contiguous() for one in (embedding, place))
    upscaling = _Upscaling(decoder, high_resolution, height, width)
    found = []
    for tokens in sparse[0]:  # one by one: what is made of an image for one prompt fits into the caches of a core
        queries, places = _two_way(decoder.transformer, torch.cat([own, tokens]), keys, codes)
        chosen = queries[2 : 2 + decoder.num_mask_tokens]
        mixers = torch.stack([mlp(one) for mlp, one in zip(decoder.output_hypernetworks_mlps, chosen, strict=True)])
        found.append((upscaling(places, mixers), chosen, queries[:2]))
    masks, tokens, leading = (torch.stack(part) for part in zip(*found, strict=True))
    quality, scores = decoder.iou_prediction_head(leading[:, 1]), decoder.pred_obj_score_head(leading[:, 0])
    if multimask:
        masks, quality, tokens = masks[:, 1:], quality[:, 1:], tokens[:, 1:]
    else:
        if decoder.dynamic_multimask_via_stability:
            masks, quality = _stable(decoder, masks, quality)
        masks, quality, tokens = masks[:, :1], quality[:, :1], tokens[:, :1]
    return masks[None], quality[None], tokens[None], scores[None]


def _two_way(transformer, prompt, keys, codes):
    """Tokens [T, C] and places [N, C] after they have attended to each other; as `Sam2VideoTwoWayTransformer`."""
    queries, placed = prompt, keys + codes
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = _among_tokens(layer.self_attn, queries, queries)
        else:
            queries = queries + _among_tokens(layer.self_attn, queries + prompt, queries)
        queries = layer.layer_norm1(queries)
        queries = queries + _to_places(layer.cross_attn_token_to_image, queries + prompt, placed, keys)
        queries = layer.layer_norm2(queries)
        queries = layer.layer_norm3(queries + layer.mlp(queries))
        keys = layer.layer_norm4(_from_tokens(layer.cross_attn_image_to_token, placed, queries + prompt, queries, keys))
        placed = keys + codes
    queries = queries + _to_places(transformer.final_attn_token_to_image, queries + prompt, placed, keys)
    return transformer.layer_norm_final_attn(queries), keys


def _among_tokens(attention, query, value):
    return attention(query=query[None, None], key=query[None, None], value=value[None, None])[0][0, 0]


def _heads(attention, projection, tokens):
    """Projected tokens [T, heads, D]."""
    return projection(tokens).unflatten(-1, (attention.num_attention_heads, -1))


def _to_places(attention, query, placed, values):
    """What tokens `query` [T, C] read from places: `placed` [N, C] with codes of positions, `values` [N, C] without."""
    count, heads = len(query), attention.num_attention_heads
    query = _heads(attention, attention.q_proj, query) * attention.scaling
    # The bias of keys moves all scores of a token alike, which a softmax does not see.
    lifted = torch.einsum("thd,hdc->htc", query, attention.k_proj.weight.unflatten(0, (heads, -1))).flatten(0, 1)
    mixed = (lifted @ placed.T).softmax(dim=-1) @ values
    mixed = torch.einsum(
        "htc,hdc->thd", mixed.view(heads, count, -1), attention.v_proj.weight.unflatten(0, (heads, -1))
    )
    return attention.o_proj(mixed.flatten(1) + attention.v_proj.bias)


def _from_tokens(attention, placed, key, value, keys):
    """`keys` [N, C] and what places `placed` [N, C] read from tokens `key` and `value` [T, C]."""
    count, heads = len(key), attention.num_attention_heads
    key = _heads(attention, attention.k_proj, key) * attention.scaling
    weight, bias = (one.unflatten(0, (heads, -1)) for one in (attention.q_proj.weight, attention.q_proj.bias))
    lifted = torch.einsum("thd,hdc->htc", key, weight).flatten(0, 1)
    scores = torch.addmm(torch.einsum("thd,hd->ht", key, bias).view(-1, 1), lifted, placed.T)
    # Places lie in the last dimension: a softmax over a last dimension of a few tokens takes twenty times as long.
    shares = scores.view(heads, count, -1).softmax(dim=1).flatten(0, 1)
    value = torch.einsum(
        "thd,chd->htc", _heads(attention, attention.v_proj, value), attention.o_proj.weight.unflatten(1, (heads, -1))
    )
    # The shares of a head sum to one, so the bias may stand beside its values.
    return torch.addmm(keys, shares.T, (value + attention.o_proj.bias / heads).flatten(0, 1))


class _Upscaling:
    """From places and mask tokens to masks; the finer maps are laid out once for all prompts."""

    def __init__(self, decoder, high_resolution, height: int, width: int):
        fine, middle = high_resolution
        self.decoder, self.shape = decoder, (height, width)
        first, second = decoder.upscale_conv1, decoder.upscale_conv2
        # [in, out, 2, 2] to [in, 2, 2, out]; biases are added to the finer maps.
        self.first, self.second = (one.weight.permute(0, 2, 3, 1).flatten(1) for one in (first, second))
        middle = middle[0].view(-1, height, 2, width, 2).permute(1, 3, 2, 4, 0) + first.bias
        fine = fine[0].view(-1, height, 2, 2, width, 2, 2).permute(1, 4, 2, 5, 3, 6, 0) + second.bias
        self.middle, self.fine = middle.reshape(height * width, -1), fine.reshape(4 * height * width, -1)

    def __call__(self, places, mixers):
        """Masks [K, 4h, 4w] of places [N, C] and mixers [K, C / 8]."""
        decoder, norm = self.decoder, self.decoder.upscale_layer_norm
        middle = torch.addmm(self.middle, places, self.first).view(len(self.fine), -1)
        middle = decoder.activation(F.layer_norm(middle, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        fine = decoder.activation(torch.addmm(self.fine, middle, self.second))
        masks = fine.view(-1, mixers.shape[1]) @ mixers.T
        masks = masks.view(*self.shape, 2, 2, 2, 2, len(mixers)).permute(6, 0, 2, 4, 1, 3, 5)
        return masks.reshape(len(mixers), 4 * self.shape[0], 4 * self.shape[1])


def _stable(decoder, masks, quality):
    """The single mask [P, 1, h, w] and its IoU [P, 1]; where small changes of the threshold move it, the best of three.

    Args:
        masks: [P, 1 + 3, h, w]. quality: [P, 1 + 3].
    """
    delta, single = decoder.dynamic_multimask_stability_delta, masks[:, 0].flatten(1)
    inside, around = ((single > level).sum(dim=1).float() for level in (delta, -delta))
    steady = torch.where(around > 0, inside / around, 1.0) >= decoder.dynamic_multimask_stability_thresh
    best = torch.where(steady, 0, 1 + quality[:, 1:].argmax(dim=1))
    rows = torch.arange(len(masks), device=masks.device)
    return masks[rows, best][:, None], quality[rows, best][:, None]

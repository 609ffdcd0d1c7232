"""Boltzmann attention sampling (BoltzFormer, CVPR 2025): which image positions a query may look at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

#: Called as draws(layer, (items, heads, queries, positions)); uniform numbers in [0, 1) of that shape.
Draws = Callable[[int, tuple[int, int, int, int]], torch.Tensor]


def blocked_probability(scores, temperature: float, sample_ratio: float, threshold: float = 1.1):
    """Probability that none of n independent Boltzmann draws hits a position.

    Args:
        scores: [..., positions] in [0, 1]. temperature: > 0. sample_ratio: n = int(positions * sample_ratio).
        threshold: positions at or above it are not drawn from; the published 1.1 leaves all of them in.

    Returns:
        [..., positions]: (1 - p)^n with p the softmax of scores / temperature.
    """
    energy = (scores / temperature).masked_fill(scores >= threshold, float("-inf"))
    p = torch.nan_to_num(torch.softmax(energy, dim=-1))
    return (1 - p) ** int(scores.shape[-1] * sample_ratio)


def item_key(seed: int, place: int, token_ids: Sequence[int]) -> tuple[int, int]:
    """Two words of 32 bits for one prompt on one image or slice, from nothing else: neighbours cannot change them."""
    text = f"{seed}/{place}/{','.join(str(int(i)) for i in token_ids)}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")


class CountedDraws:
    """Uniform numbers that depend on the item's key, the layer and the position alone.

    There is no state: a number is a hash of its place, in integers of 32 bits, so that batch size, other prompts and
    the device change nothing.

    Args:
        keys: one pair per item, see `item_key`.
    """

    def __init__(self, keys: Sequence[tuple[int, int]], device=None):
        self.keys = torch.tensor([[_signed(a), _signed(b)] for a, b in keys], dtype=torch.int32, device=device)

    def __call__(self, layer: int, shape):
        if shape[0] != len(self.keys):
            raise ValueError(f"draws for {len(self.keys)} items were prepared, {shape[0]} are asked for")
        count = shape[1] * shape[2] * shape[3]
        place = torch.arange(count, dtype=torch.int32, device=self.keys.device)
        # The layer enters as a step of the golden ratio, so that keys of neighbouring layers lie far apart.
        first = self.keys[:, :1] + _signed((layer + 1) * 0x9E3779B9)
        bits = _mix(_mix(place[None] ^ first) ^ self.keys[:, 1:])
        bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
        return bits.to(torch.float32).mul_(2.0**-24).view(shape)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32 bits in which every input bit reaches every output bit (two multiply and shift rounds)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        # The shift of a signed integer drags its sign along; the mask takes it off again.
        x = x ^ x.bitwise_right_shift(shift).bitwise_and_((1 << (32 - shift)) - 1)
        x.mul_(_signed(factor))
    return x ^ x.bitwise_right_shift(16).bitwise_and_(0xFFFF)


def _signed(word: int) -> int:
    """The signed integer of 32 bits with the bits of `word`."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word

"""Sequence packing: several short sequences in one row, less padding, and no sequence attends to another.

A packed row carries `segment_ids` (0 is padding, 1.. the sequences), position ids that start anew in each sequence,
and a block-diagonal causal mask made from them. A model that honours both gives each sequence the loss it has alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put items into bins of at most `budget`, longest first, each into the first bin with room.

    Returns:
        the indices in each bin; every index once.

    Raises:
        ValueError: an item is longer than the budget.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > budget:
        raise ValueError(f"item {order[0]} has {lengths[order[0]]} tokens, more than the budget of {budget}")
    bins: list[list[int]] = []
    room: list[int] = []
    for index in order:
        for number, left in enumerate(room):
            if lengths[index] <= left:
                bins[number].append(index)
                room[number] -= lengths[index]
                break
        else:
            bins.append([index])
            room.append(budget - lengths[index])
    return [sorted(members) for members in bins]


def pack_rows(sequences: Sequence[Mapping], budget: int, pad: Mapping[str, int]) -> dict:
    """Pack token sequences into rows.

    Args:
        sequences: mappings of 1-D tensors of one length each, e.g. `input_ids` and `labels`; all with the same keys.
        budget: tokens per row.
        pad: fill value of each key, e.g. {"input_ids": 0, "labels": -100}.

    Returns:
        the same keys as [rows, L] (L <= budget, the longest row), with `position_ids` and `segment_ids` [rows, L] int64
        and `members`, the indices of the sequences in each row in order. The first label of every sequence becomes the
        pad value where a key "labels" is there: a causal model would learn it from the end of the one before.
    """
    import torch

    rows = first_fit([len(next(iter(s.values()))) for s in sequences], budget)
    width = max(sum(len(next(iter(sequences[i].values()))) for i in row) for row in rows)
    packed = {key: torch.full((len(rows), width), value) for key, value in pad.items()}
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for place, index in enumerate(row, start=1):
            sequence = sequences[index]
            length = len(next(iter(sequence.values())))
            for key, values in sequence.items():
                packed[key][number, start : start + length] = values
            if "labels" in packed:
                packed["labels"][number, start] = pad["labels"]
            positions[number, start : start + length] = torch.arange(length)
            segments[number, start : start + length] = place
            start += length
    return {**packed, "position_ids": positions, "segment_ids": segments, "members": rows}


def block_diagonal_mask(segment_ids, causal: bool = True):
    """True where a query may look at a key: same sequence and, if causal, not later.

    Args:
        segment_ids: [B, L], 0 for padding. A padding token sees itself only, so that no row of the softmax is empty.

    Returns:
        bool [B, 1, L, L], as `attn_mask` of torch's scaled_dot_product_attention and transformers' 4-D masks.
    """
    import torch

    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, :, None]
    length = segment_ids.shape[1]
    if causal:
        same = same & torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return (same | torch.eye(length, dtype=torch.bool, device=segment_ids.device))[:, None]

"""Greedy or sampled decoding of a batch that keeps the hidden states of special tokens, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache


@dataclass
class Generated:
    """What one row of a batch said.

    `ids` are the new tokens up to and including the stop; `states` holds one [D] vector per special token of `ids`, in
    order, and `state_ids` which token each belongs to; `finished` is False where the token limit cut the answer.
    """

    ids: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    state_ids: list[int] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def generate(
    model,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    keep_states_of: Sequence[int],
    stop_ids: Sequence[int] = (),
    stopped: Callable[[list[int]], bool] | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    keep_last: bool = True,
) -> list[Generated]:
    """Decode every row until its stop.

    Only the last layer of the newest position is looked at, and it is kept only where the token is special: memory
    does not grow with the answer beyond the key-value cache.

    Args:
        model: has `language_model`, `lm_head` and `embed_tokens`.
        inputs_embeds: [B, L, D], padded on the left.
        attention_mask: [B, L], 0 at padding.
        stopped: called with the new ids of a row after each token; True ends the row (stop words of several tokens).
        temperature: 0 takes the most likely token, otherwise tokens are drawn with `generator`.
        use_cache: False computes every step anew; the answer is the same, only slower.
        keep_last: also keep the state of a special token that is the very last one (one more step); the published
            UniBiomed code loses it.
    """
    batch = inputs_embeds.shape[0]
    rows = [Generated() for _ in range(batch)]
    special = set(keep_states_of)
    stop_ids = set(stop_ids)
    cache = DynamicCache() if use_cache else None
    step_embeds, mask = inputs_embeds, attention_mask
    for step in range(max_new_tokens + 1):
        hidden = _forward(model, step_embeds, mask, cache)[:, -1]
        for index, row in enumerate(rows):
            pending = row.ids and row.ids[-1] in special and len(row.states) < sum(i in special for i in row.ids)
            if pending:
                row.states.append(hidden[index])
                row.state_ids.append(row.ids[-1])
        if step == max_new_tokens or all(row.finished for row in rows):
            break
        logits = model.lm_head(hidden.to(model.lm_head.weight.dtype)).float()
        if temperature > 0:
            probabilities = torch.softmax(logits / temperature, dim=-1)
            tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        else:
            tokens = logits.argmax(dim=-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row.finished:
                continue
            row.ids.append(token)
            row.finished = token in stop_ids or (stopped is not None and stopped(row.ids))
        if all(row.finished for row in rows) and not any(_awaits_state(row, special) for row in rows):
            break
        if not keep_last and step == max_new_tokens - 1:
            break
        new = model.embed_tokens(tokens)[:, None]
        mask = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
        step_embeds = new if use_cache else torch.cat([step_embeds, new], dim=1)
    return rows


def _awaits_state(row: Generated, special: set[int]) -> bool:
    return bool(row.ids) and row.ids[-1] in special and len(row.states) < sum(i in special for i in row.ids)


def _forward(model, embeds, mask, cache) -> torch.Tensor:
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
    outputs = model.language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return outputs.last_hidden_state

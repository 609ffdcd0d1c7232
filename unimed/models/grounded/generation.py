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
    order, `state_ids` which token each belongs to and `probabilities` how probable it was when it was chosen;
    `finished` is False where the token limit cut the answer.
    """

    ids: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    state_ids: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def generate(
    model,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    position_ids: torch.Tensor | None = None,
    keep_states_of: Sequence[int],
    stop_ids: Sequence[int] = (),
    stopped: Callable[[list[int]], bool] | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    keep_last: bool = True,
    state_before: bool = False,
    watch: Callable[[int, Generated], None] | None = None,
) -> list[Generated]:
    """Decode every row until its stop.

    Only the last layer of the newest position is looked at, and it is kept only where the token is special: memory
    does not grow with the answer beyond the key-value cache. What rows have in common at their beginning (system prompt
    and image, where several questions are asked about one image) is read once; see `shared_prefixes`.

    Args:
        model: has `language_model`, `lm_head` and `embed_tokens`.
        inputs_embeds: [B, L, D], padded on the left.
        attention_mask: [B, L], 0 at padding.
        position_ids: [.., B, L] where they are more than the order of the tokens; the newest place is where the answer
            goes on. By default padding is not counted.
        stopped: called with the new ids of a row after each token; True ends the row (stop words of several tokens).
        temperature: 0 takes the most likely token, otherwise tokens are drawn with `generator`.
        use_cache: False computes every step anew; the answer is the same, only slower.
        state_before: keep the state that predicted a special token instead of the state at it.
        watch: called with the number of a row and the row after each of its tokens; what it raises ends the decoding.
        keep_last: also keep the state of a special token that is the very last one (one more step); the published
            UniBiomed code loses it.
    """
    rows = [Generated() for _ in range(len(inputs_embeds))]
    active = list(range(len(rows)))  # rows that are still said, in the order of the batch
    special, stop_ids = set(keep_states_of), set(stop_ids)
    cache = DynamicCache() if use_cache else None
    if position_ids is None:
        position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    embeds, mask, positions = inputs_embeds, attention_mask, position_ids
    if cache is not None and (groups := shared_prefixes(embeds, mask)) is not None:
        embeds, mask, positions = _read_prefixes(model, embeds, mask, positions, cache, *groups)
    for step in range(max_new_tokens + 1):
        hidden = _forward(model, embeds, mask, positions, cache)[:, -1]
        for state, index in zip(hidden, active, strict=True):
            if awaits_state(rows[index], special):
                rows[index].states.append(state)
                rows[index].state_ids.append(rows[index].ids[-1])
        if step == max_new_tokens:
            break
        # Rows that are finished leave the batch: the others are not kept waiting for them.
        going = [place for place, index in enumerate(active) if not rows[index].finished]
        if len(going) < len(active):
            active = [active[place] for place in going]
            if not active:
                break
            keep = torch.tensor(going, device=hidden.device)
            hidden, embeds, mask = hidden[keep], embeds[keep], mask[keep]
            positions = positions[..., keep, :]
            if cache is not None:
                cache.batch_select_indices(keep)
        logits = model.lm_head(hidden.to(model.lm_head.weight.dtype)).float()
        if temperature > 0:
            probabilities = torch.softmax(logits / temperature, dim=-1)
            tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        else:
            tokens = logits.argmax(dim=-1)
        for place, (index, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            row = rows[index]
            row.ids.append(token)
            if token in special:
                row.probabilities.append(float(torch.softmax(logits[place], dim=-1)[token]))
                if state_before:
                    row.states.append(hidden[place])
                    row.state_ids.append(token)
            row.finished = token in stop_ids or (stopped is not None and stopped(row.ids))
            if watch is not None:
                watch(index, row)
        waiting = any(awaits_state(rows[index], special) for index in active)
        if all(rows[index].finished for index in active) and not waiting:
            break
        if not keep_last and step == max_new_tokens - 1:
            break
        new = model.embed_tokens(tokens)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        following = positions[..., -1:] + 1
        embeds = new if use_cache else torch.cat([embeds, new], dim=1)
        positions = following if use_cache else torch.cat([positions, following], dim=-1)
    return rows


#: Rows read their beginning together only if it is at least this part of the longer one: else it would be a few tokens
#: of a system prompt, and the rows of one image would be torn apart.
_LEAST_SHARED = 0.5


def shared_prefixes(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> tuple[list[int], list[int]] | None:
    """Which rows begin alike.

    Args:
        inputs_embeds: [B, L, D], padded on the left. attention_mask: [B, L].

    Returns:
        (group of each row, tokens that all rows of each group share, at least one less than any of them has), or None
        where no two rows share enough.
    """
    count = len(inputs_embeds)
    if count < 2 or attention_mask.ndim != 2:
        return None
    lengths = attention_mask.sum(dim=1).tolist()
    starts = [attention_mask.shape[1] - length for length in lengths]
    members: list[list[int]] = []
    shared: list[int] = []
    group_of = []
    for row in range(count):
        chosen = None
        for group, (first, *_) in enumerate(members):
            least = min(lengths[row], lengths[first]) - 1
            if least < _LEAST_SHARED * max(lengths[row], lengths[first]):
                continue
            one = inputs_embeds[row, starts[row] : starts[row] + least]
            other = inputs_embeds[first, starts[first] : starts[first] + least]
            differs = torch.nonzero((one != other).any(dim=-1))
            common = int(differs[0]) if len(differs) else least
            if common >= _LEAST_SHARED * max(lengths[row], lengths[first]):
                chosen, shared[group] = group, min(shared[group], common)
                break
        if chosen is None:
            chosen = len(members)
            members.append([])
            shared.append(lengths[row] - 1)
        members[chosen].append(row)
        group_of.append(chosen)
    return None if len(members) == count else (group_of, shared)


def _read_prefixes(model, embeds, mask, positions, cache, group_of: list[int], shared: list[int]):
    """Fill `cache` with the beginning of each group, once, and hand it to every row of the group.

    Returns:
        what is left to read: embeddings [B, S, D], the mask of cache and rest [B, P + S], positions [.., B, S].
    """
    firsts = [group_of.index(group) for group in range(len(shared))]
    starts = (mask.shape[1] - mask.sum(dim=1)).tolist()
    begin = _gathered(embeds, positions, [(f, starts[f], starts[f] + n) for f, n in zip(firsts, shared, strict=True)])
    _forward(model, *begin, cache)
    rows = torch.tensor(group_of, device=embeds.device)
    cache.batch_select_indices(rows)
    spans = [(row, starts[row] + shared[group], mask.shape[1]) for row, group in enumerate(group_of)]
    rest, own, left = _gathered(embeds, positions, spans)
    return rest, torch.cat([begin[1][rows], own], dim=1).to(mask.dtype), left


def _gathered(embeds, positions, spans: list[tuple[int, int, int]]):
    """Parts (row, start, end) of the batch as a batch of their own, padded on the left: embeddings, mask, positions."""
    width = max(end - start for _, start, end in spans)
    parts, places, mask = [], [], embeds.new_zeros(len(spans), width, dtype=torch.long)
    for number, (row, start, end) in enumerate(spans):
        pad = width - (end - start)
        parts.append(torch.nn.functional.pad(embeds[row, start:end], (0, 0, pad, 0)))
        places.append(torch.nn.functional.pad(positions[..., row, start:end], (pad, 0)))
        mask[number, pad:] = 1
    return torch.stack(parts), mask, torch.stack(places, dim=-2)


def awaits_state(row: Generated, special: set[int]) -> bool:
    """Whether the newest token of a row is special and its state is still to come."""
    return bool(row.ids) and row.ids[-1] in special and len(row.states) < sum(i in special for i in row.ids)


def _forward(model, embeds, mask, positions, cache) -> torch.Tensor:
    outputs = model.language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return outputs.last_hidden_state

"""Greedy or sampled decoding of a batch that keeps the hidden states of special tokens, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from unimed.models.grounded.drafts import Drafts


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
    drafts: Sequence[Drafts] | None = None,
) -> list[Generated]:
    """Decode every row until its stop.

    Of the newest positions the last layer is kept only where the token is special: memory does not grow with the answer
    beyond the key-value cache. What rows have in common at their beginning (system prompt and image, where several
    questions are asked about one image) is read once; see `shared_prefixes`.

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
        drafts: per row what guesses its next tokens; guesses are read in one pass and kept as far as they are what the
            model says. The answer is the same (where two tokens are equally likely to the last digits, the order of
            sums decides, as it does between batches). Not used with a temperature or without a cache.
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
    guessing = drafts is not None and use_cache and temperature <= 0

    def waits(row: Generated) -> bool:
        """Whether another pass is wanted for the state of the newest token alone."""
        return awaits_state(row, special) and (keep_last or len(row.ids) < max_new_tokens)

    def done(row: Generated) -> bool:
        return (row.finished or len(row.ids) >= max_new_tokens) and not waits(row)

    def guesses() -> list[list[int]]:
        if not guessing:
            return [[]] * len(active)
        rooms = [0 if rows[i].finished else max_new_tokens - len(rows[i].ids) - 1 for i in active]
        return [drafts[i].guess(rows[i].ids, room) for i, room in zip(active, rooms, strict=True)]

    guessed = guesses()
    embeds, mask, positions = _followed(model, embeds, mask, positions, guessed)
    while active and max_new_tokens > 0:
        width = 1 + max(map(len, guessed))
        hidden = read(model, embeds, mask, positions, cache)[:, -width:]
        logits = model.lm_head(hidden.flatten(0, 1).to(model.lm_head.weight.dtype)).float().unflatten(0, (-1, width))
        if temperature > 0:
            probabilities = torch.softmax(logits[:, 0] / temperature, dim=-1)
            tokens = torch.multinomial(probabilities, 1, generator=generator)
        else:
            tokens = logits.argmax(dim=-1)
        right = []
        for place, (index, likeliest) in enumerate(zip(active, tokens.tolist(), strict=True)):
            row, draft, step = rows[index], guessed[place], 0
            while True:
                if awaits_state(row, special):
                    row.states.append(hidden[place, step])
                    row.state_ids.append(row.ids[-1])
                if row.finished or len(row.ids) >= max_new_tokens:
                    break
                token = likeliest[step]
                row.ids.append(token)
                if token in special:
                    row.probabilities.append(float(torch.softmax(logits[place, step], dim=-1)[token]))
                    if state_before:
                        row.states.append(hidden[place, step])
                        row.state_ids.append(token)
                row.finished = token in stop_ids or (stopped is not None and stopped(row.ids))
                if watch is not None:
                    watch(index, row)
                if step == len(draft) or token != draft[step]:
                    break
                step += 1
            right.append(step)
            if guessing:
                drafts[index].judge(len(draft), step)
                drafts[index].extend(row.ids[len(row.ids) - step - 1 :])
        # Rows that are done leave the batch: the others are not kept waiting for them.
        going = [place for place, index in enumerate(active) if not done(rows[index])]
        active = [active[place] for place in going]
        if not active:
            break
        right = torch.tensor([right[place] for place in going], device=mask.device)
        if len(going) < len(mask):
            keep = torch.tensor(going, device=hidden.device)
            embeds, mask, positions = embeds[keep], mask[keep], positions[..., keep, :]
            if cache is not None:
                cache.batch_select_indices(keep)
        if width > 1:
            mask, positions = _without_wrong(cache, mask, positions, right, width)
        newest = torch.tensor([rows[index].ids[-1] for index in active], device=embeds.device)
        new, following = model.embed_tokens(newest)[:, None], positions[..., -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        embeds = new if use_cache else torch.cat([embeds, new], dim=1)
        positions = following if use_cache else torch.cat([positions, following], dim=-1)
        guessed = guesses()
        embeds, mask, positions = _followed(model, embeds, mask, positions, guessed)
    return rows


@torch.no_grad()
def read_answers(
    model, hidden: torch.Tensor, answers: Sequence[Sequence[int]], *, keep_states_of: Sequence[int], state_before=False
) -> list[Generated]:
    """What `generate` keeps of answers, from one pass over questions with their answers: text of another engine.

    Args:
        hidden: [B, L, D], states of rows padded on the left that end with `answers`, ids with their stop.

    The rest is that of `generate`.
    """
    rows, special = [Generated(list(ids), finished=True) for ids in answers], set(keep_states_of)
    for states, row in zip(hidden, rows, strict=True):
        begin = len(states) - len(row.ids)
        for place, token in enumerate(row.ids, start=begin):
            if token not in special:
                continue
            before = states[place - 1]
            logits = model.lm_head(before[None].to(model.lm_head.weight.dtype)).float()[0]
            row.probabilities.append(float(torch.softmax(logits, dim=-1)[token]))
            row.states.append(before if state_before else states[place])
            row.state_ids.append(token)
    return rows


def _followed(model, embeds, mask, positions, tokens: Sequence[Sequence[int]]):
    """A batch with tokens behind each row, padded on the right: embeddings, mask, positions."""
    width = max(map(len, tokens), default=0)
    if not width:
        return embeds, mask, positions
    ids = torch.zeros(len(tokens), width, dtype=torch.long, device=embeds.device)
    known = mask.new_zeros(len(tokens), width)
    for number, part in enumerate(tokens):
        ids[number, : len(part)] = torch.tensor(part, dtype=torch.long)
        known[number, : len(part)] = 1
    embeds = torch.cat([embeds, model.embed_tokens(ids).to(embeds.dtype)], dim=1)
    steps = torch.arange(1, width + 1, device=positions.device)
    return embeds, torch.cat([mask, known], dim=1), torch.cat([positions, positions[..., -1:] + steps], dim=-1)


def _without_wrong(cache, mask, positions, right: torch.Tensor, width: int):
    """Take wrong guesses back: out of the cache where no row has a right one, behind the mask elsewhere.

    Args:
        mask: [B, L], the last `width` of which are the newest token of a row and its guesses.
        right: [B], how many of them were right.

    Returns:
        mask, and positions [.., B, 1] of the last token that counts.
    """
    excess = width - 1 - int(right.max())
    counts = torch.arange(width, device=mask.device) <= right[:, None]
    mask = torch.cat([mask[:, :-width], counts.to(mask.dtype)], dim=1)
    if excess:
        cache.crop(-excess)
        mask = mask[:, :-excess]
    return mask, positions[..., -width : 1 - width] + right[:, None].to(positions.device)


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
    read(model, *begin, cache)
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


def read(model, embeds, mask, positions, cache=None) -> torch.Tensor:
    """States [B, L, D] of embeddings [B, L, D]; what `cache` holds stands before them."""
    outputs = model.language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return outputs.last_hidden_state

"""Training and decoding with a backbone that runs through its own forward pass and its own `generate`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F
from transformers import GenerationMixin, LogitsProcessor, StoppingCriteria

from unimed.models.grounded.generation import Generated, awaits_state, read_answers
from unimed.models.grounded.layout import ImageLayout
from unimed.models.grounded.output import GroundedOutput


class NativeForward:
    """Mixin of `GroundedMLLM`."""

    def _forward_native(
        self, input_ids, attention_mask, native, layout, labels, mask_features, mask_boxes, return_logits,
        position_ids=None,
    ) -> GroundedOutput:  # fmt: skip
        """As `forward`, by the forward pass of the backbone itself."""
        wanted = None if labels is None else labels[:, 1:] != -100
        columns = None
        if not return_logits:
            # Logits of the places that the loss reads, and of one more where it reads none.
            with_label = torch.zeros_like(input_ids[0, :-1]) if wanted is None else wanted.any(dim=0)
            columns = (
                torch.nonzero(with_label)[:, 0] if bool(with_label.any()) else with_label.new_zeros(1, dtype=torch.long)
            )
        asked = self.config.image_token_id if self.shares_tokens else None
        packed = layout is not None and layout.sample_of_token is not None
        read = self.backbone.read(
            input_ids, None if packed else attention_mask, native, columns, asked, position_ids if packed else None
        )
        output = GroundedOutput(hidden=read.hidden, logits=read.logits if return_logits else None)
        if wanted is not None:
            row, column = torch.nonzero(wanted, as_tuple=True)
            place = column if columns is None else torch.searchsorted(columns, column)
            tokens = F.cross_entropy(read.logits[row, place].float(), labels[:, 1:][wanted], reduction="none")
            self._language_loss(output, tokens, labels, wanted, layout)
        if asked is not None and mask_features is not None:
            rows = read.image_tokens
            if packed:
                rows = tokens_of_samples(rows, layout, input_ids == asked)
            known = tokens_of_rows(rows, layout)
            tokens = tuple(known.get(image) for image in range(len(mask_features)))
            mask_features = replace(mask_features, tokens=tokens)
        self._point(output, input_ids, labels, mask_features, layout, mask_boxes)
        return output

    @torch.no_grad()
    def _read_native(self, inputs, features, answers) -> list[Generated]:
        """As `_decode_native` for answers that are known: ids that the rows of the batch end with."""
        asked = self.config.image_token_id if self.shares_tokens and features.pixels is not None else None
        ids = inputs["input_ids"]
        columns = torch.zeros(1, dtype=torch.long, device=ids.device)
        seen = self.backbone.read(ids, inputs["attention_mask"], inputs.get("native"), columns, asked)
        if asked is not None:
            features.tokens = tokens_of_rows(seen.image_tokens, inputs.get("layout"))
        kept = self._answer_options()
        told = {name: kept[name] for name in ("keep_states_of", "state_before")}
        return read_answers(self, seen.hidden, answers, **told)

    @torch.no_grad()
    def _decode_native(self, inputs, features, **options) -> list[Generated]:
        """Answers to the questions of a batch of the processor, by `generate` of the backbone; see `generate_native`.

        Args:
            features: `ImageFeatures` of the mask head, which gets the image tokens where its decoder reads them.
        """
        asked = self.config.image_token_id if self.shares_tokens and features.pixels is not None else None
        rows, tokens = generate_native(
            self.backbone, inputs["input_ids"], inputs["attention_mask"], inputs.get("native"), image_token_id=asked,
            pad_id=self.processor.pad_id, **self._answer_options(), **options,
        )  # fmt: skip
        if asked is not None:
            features.tokens = tokens_of_rows(tokens, inputs.get("layout"))
        return rows


def tokens_of_samples(rows, layout: ImageLayout, places: torch.Tensor) -> list[torch.Tensor]:
    """The image tokens [N, D] of packed rows by their samples; `places` [B, L] says where in the rows they stand."""
    tokens, owner = torch.cat(list(rows)), layout.sample_of_token[places]
    return [tokens[owner == sample] for sample in range(len(layout.per_sample))]


def tokens_of_rows(rows, layout: ImageLayout | None) -> dict[int, torch.Tensor]:
    """Image -> its tokens, of the image tokens [N, D] of each row of a batch.

    Several images of a row are of one size (frames) and have equal parts of its tokens. Without a layout row i shows
    image i.
    """
    known: dict[int, torch.Tensor] = {}
    if layout is None:
        return {row: tokens for row, tokens in enumerate(rows) if len(tokens)}
    images = iter(layout.encoded[layout.shown].tolist())
    for tokens, count in zip(rows, layout.per_sample.tolist(), strict=True):
        for part in tokens.chunk(count) if count else ():
            known.setdefault(next(images), part)
    return known


@torch.no_grad()
def generate_native(
    backbone,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    inputs,
    *,
    keep_states_of,
    stop_ids=(),
    stopped=None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    state_before: bool = False,
    watch=None,
    pad_id: int = 0,
    image_token_id: int | None = None,
) -> tuple[list[Generated], list[torch.Tensor] | None]:
    """As `unimed.models.grounded.generation.generate`, by the model's own `generate`, and the image tokens of each row.

    Args:
        backbone: a `NativeBackbone`.
        input_ids, attention_mask: [B, L], padded on the left.
        inputs: what its processor gives beside them.
        image_token_id: asks for the image tokens.
    """
    rows = [Generated() for _ in input_ids]
    with backbone.listening(image_token_id, input_ids) as heard:
        listener = _Listener(rows, heard, set(keep_states_of), set(stop_ids), stopped, state_before, watch)
        listener.limit, listener.temperature, listener.generator = max_new_tokens, temperature, generator
        # One token more than wanted is drawn: its step gives the state at the last one.
        GenerationMixin.generate(  # and not one that a family (Janus) has put before it, for images it draws
            backbone.vlm,
            input_ids=input_ids, attention_mask=attention_mask, **backbone.given(inputs), do_sample=False,
            num_beams=1, max_new_tokens=max_new_tokens + 1, use_cache=use_cache, pad_token_id=pad_id,
            eos_token_id=list(stop_ids) or None, logits_processor=[listener], stopping_criteria=[_Stop(listener)],
        )  # fmt: skip
    return rows, heard.image_tokens


class _Listener(LogitsProcessor):
    """Writes down what every row says while a model generates; draws, where the likeliest are not wanted."""

    def __init__(self, rows, heard, special, stop_ids, stopped, state_before, watch):
        self.rows, self.heard, self.special, self.stop_ids = rows, heard, special, stop_ids
        self.stopped, self.state_before, self.watch = stopped, state_before, watch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores = scores.float()
        if self.temperature <= 0:
            return scores
        # The largest of logits with Gumbel noise is a draw from their softmax.
        uniform = torch.rand(scores.shape, generator=self.generator, device=scores.device).clamp(min=1e-20)
        return self.scores / self.temperature - torch.log(-torch.log(uniform))

    def take(self, tokens: list[int]) -> list[bool]:
        """Note the newest token of each row; says which rows are done."""
        states = self.heard.hidden[:, -1]
        for number, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if self._awaits(row):
                row.states.append(states[number])
                row.state_ids.append(row.ids[-1])
            if row.finished or len(row.ids) == self.limit:
                continue
            row.ids.append(token)
            if token in self.special:
                row.probabilities.append(float(torch.softmax(self.scores[number], dim=-1)[token]))
                if self.state_before:
                    row.states.append(states[number])
                    row.state_ids.append(token)
            row.finished = token in self.stop_ids or (self.stopped is not None and self.stopped(row.ids))
            if self.watch is not None:
                self.watch(number, row)
        return [(row.finished or len(row.ids) == self.limit) and not self._awaits(row) for row in self.rows]

    def _awaits(self, row: Generated) -> bool:
        return awaits_state(row, self.special)


class _Stop(StoppingCriteria):
    def __init__(self, listener: _Listener):
        self.listener = listener

    def __call__(self, input_ids: torch.Tensor, scores, **_) -> torch.Tensor:
        done = self.listener.take(input_ids[:, -1].tolist())
        return torch.tensor(done, device=input_ids.device)

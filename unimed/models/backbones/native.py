"""Image-text models of transformers as they are: their own forward pass, their own `generate`, their own inputs.

Where image features go, which positions tokens have, which of them see each other, what inner layers are fed with, and
what a cache holds is the model's business. Ours is to listen: the states of chosen tokens, and the image tokens, are
read off as they pass.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from unimed.models.backbones.base import Backbone
from unimed.models.backbones.families import family_of


@dataclass
class Reading:
    """What one pass of a model gave.

    `hidden` [B, L, D] are the states after the final norm; `logits` [B, C, V] belong to the columns `columns` [C];
    `image_tokens` holds a tensor [N, D] per row, in reading order, where they were asked for.
    """

    hidden: torch.Tensor
    logits: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    image_tokens: list[torch.Tensor] | None = None


class NativeBackbone(Backbone):
    """Any `AutoModelForImageTextToText` whose question and answer are one sequence.

    Args:
        config: configuration of the transformers model.

    Raises:
        ValueError: a family that does not fit (see `unimed.models.backbones.families`); the reason is said.
    """

    native = True

    def __init__(self, config):
        super().__init__()
        self.family = family_of(config)
        self.vlm = AutoModelForImageTextToText.from_config(config)
        taken = inspect.signature(self.vlm.forward).parameters
        self._taken = set(taken)

    @property
    def hidden_dim(self) -> int:
        return self.lm_head.weight.shape[1]

    @property
    def language_model(self) -> nn.Module:
        """The decoder of the text part."""
        decoder = self.vlm.get_decoder()
        # Llama 4 names its language model with the head.
        return decoder.model if hasattr(decoder, "lm_head") else decoder

    @property
    def lm_head(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def given(self, inputs: Mapping | None) -> dict:
        """Those of `inputs` that the model takes, on its device; pixels in its dtype."""
        place = self.lm_head.weight
        kept = {}
        for name, value in (inputs or {}).items():
            if name in self._taken and torch.is_tensor(value):
                kept[name] = value.to(place.device, place.dtype if value.is_floating_point() else None)
        return kept

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, inputs: Mapping | None = None,
        columns: torch.Tensor | None = None, image_token_id: int | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> Reading:  # fmt: skip
        """One pass over whole sequences.

        Args:
            input_ids, attention_mask: [B, L], padded on either side; no mask where `position_ids` are given.
            inputs: what the processor of the model gives beside them: pixels, sizes, types of tokens, ...
            columns: places of the sequences whose logits are wanted; None wants all of them.
            image_token_id: asks for the image tokens.
            position_ids: [B, L] of rows with several sequences: where they start anew, transformers lets a sequence
                see itself alone, by the masks that the model is made for (`Family.packs`).
        """
        options = {} if position_ids is None else {"position_ids": position_ids}
        if columns is not None and "logits_to_keep" in self._taken:
            options["logits_to_keep"] = columns
        if self.family.counts:
            options["position_ids"] = attention_mask.long().cumsum(dim=1).sub(1).clamp(min=0)
        with self.listening(image_token_id, input_ids) as heard:
            output = self.vlm(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **self.given(inputs), **options
            )
        logits = output.logits
        if columns is not None and "logits_to_keep" not in options:
            logits = logits[:, columns]
        return Reading(heard.hidden, logits, columns, heard.image_tokens)

    @contextlib.contextmanager
    def listening(self, image_token_id: int | None = None, input_ids=None) -> Iterator[Reading]:
        """Inside, the newest states of the text decoder are kept, and the image tokens of its first pass.

        Args:
            image_token_id, input_ids: which places [B, L] of the first pass are image tokens; None keeps none.
        """
        heard = Reading(hidden=None)

        def states(module, arguments, output):
            heard.hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state

        def tokens(module, arguments, keywords):
            embeds = keywords.get("inputs_embeds")
            if heard.image_tokens is None and embeds is not None:
                places = (input_ids == image_token_id).to(embeds.device)
                heard.image_tokens = [row[place] for row, place in zip(embeds, places, strict=True)]

        decoder = self.language_model
        hooks = [decoder.register_forward_hook(states)]
        if image_token_id is not None:
            hooks.append(decoder.register_forward_pre_hook(tokens, with_kwargs=True))
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

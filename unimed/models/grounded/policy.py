"""A grounded model as the policy of reinforcement learning: ids in, states and output layer out, images by number.

Trainers of language models hand on ids and nothing else. So the ids at the places of an image lie beyond the vocabulary
and say which image stands there, whatever order and batches a trainer makes of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from unimed.models.heads.mask import ImageFeatures


class _Reader(nn.Module):
    """States of a conversation whose images are named by number."""

    def __init__(self, model):
        super().__init__()
        self.model, self.known = model, {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_) -> BaseModelOutput:
        """[B, L] padded on the left of the prompt -> states [B, L, D]."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        places = input_ids >= vocabulary
        embeds = self.model.embed_tokens(input_ids.masked_fill(places, 0))
        named = [int(row[place][0]) for row, place in zip(input_ids, places, strict=True) if place.any()]
        parts = [self.known[number - vocabulary] for number in named]
        if parts:
            tokens = torch.cat(parts).to(embeds.device, embeds.dtype)
            embeds = embeds.masked_scatter(places[..., None], tokens)
        positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        states = self.model.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return BaseModelOutput(last_hidden_state=states)


class GroundedPolicy(PreTrainedModel, GenerationMixin):
    """The language model of a grounded model, trained on its own answers; vision encoder, connector and heads stay.

    Args:
        model: a `GroundedMLLM` whose backbone takes images at one size.
    """

    base_model_prefix = "reader"
    # Attention is that of the grounded model, which was built before.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, model):
        super().__init__(copy.deepcopy(model.config.get_text_config()))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for part in (model.language_model, model.lm_head):
            for parameter in part.parameters():
                parameter.requires_grad_(True)
        self.reader = _Reader(model)

    @property
    def grounded(self):
        """The grounded model."""
        return self.reader.model

    def get_output_embeddings(self):
        return self.grounded.lm_head

    def get_input_embeddings(self):
        return self.grounded.get_input_embeddings()

    def forward(self, input_ids, attention_mask, **kwargs) -> BaseModelOutput:
        """As the reader; log probabilities are made of its states by the trainer."""
        return self.reader(input_ids, attention_mask, **kwargs)

    @torch.no_grad()
    def prompt_ids(self, number: int, image, text: str, given: Sequence = ()) -> list[int]:
        """Ids of the prompt for question `number`, whose image is kept by that number.

        Raises:
            ValueError: a backbone whose images keep their own size.
        """
        model = self.grounded
        assembly = model.processor.assembly()
        assembly.add(image, [("user", text)], given)
        inputs = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in assembly.batch([0]).items()}
        if inputs.get("image_grid_thw") is not None:
            raise ValueError("reinforcement needs a backbone that takes images at one size")
        ids = inputs["input_ids"][0]
        places = ids == model.config.image_token_id
        if bool(places.any()) and number not in self.reader.known:
            features = ImageFeatures(model.mask_head, inputs.get("mask_pixel_values"))
            tokens = model._image_tokens(inputs, features)
            index = inputs["layout"].token_index
            self.reader.known[number] = tokens if index is None else tokens[index.to(tokens.device)]
        return ids.masked_fill(places, model.get_input_embeddings().num_embeddings + number).tolist()

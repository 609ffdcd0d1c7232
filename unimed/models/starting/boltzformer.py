"""A small BoltzFormer made from nothing, with a tokenizer learnt from the prompts it will be asked."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from unimed.models.boltzformer.configuration import BoltzFormerConfig
from unimed.models.boltzformer.modeling import BoltzFormerModel
from unimed.models.boltzformer.tokenizing import train_tokenizer


def build_small(prompts: Iterable[str] = (), *, vocabulary: int = 600, seed: int = 0, **sizes) -> BoltzFormerModel:
    """A model of about half a million parameters with random weights.

    Args:
        prompts: texts whose frequent words become tokens; any other text is spelt in letters.
        vocabulary: most tokens, at least 514.
        sizes: changes to `BoltzFormerConfig.tiny`, for example `image_size=128`.
    """
    length = sizes.pop("text_length", 77)
    tokenizer = train_tokenizer(prompts, vocabulary, length)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = BoltzFormerModel(BoltzFormerConfig.tiny(text_vocab_size=len(tokenizer), text_length=length, **sizes))
    torch.set_rng_state(state)
    model.tokenizer = tokenizer
    return model.eval()

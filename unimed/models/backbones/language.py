"""Pretrained causal language models from a folder or from one quantised GGUF file."""

from __future__ import annotations

from pathlib import Path

import torch

from unimed.models import foreign


def read_language_model(path: str | Path):
    """Model in float32 and tokenizer.

    Args:
        path: a Hugging Face folder, or a `.gguf` file (dequantised; slow, so save the result).

    Raises:
        FileNotFoundError: nothing is there.
        WeightsError, ForeignError: weights that are not whole, or a folder that needs code of its own.
    """
    from transformers import AutoModelForCausalLM

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"language model {path} does not exist")
    if path.suffix == ".gguf":
        options = {"gguf_file": path.name}
        path = path.parent
    else:
        options = {}
    model = foreign.model(AutoModelForCausalLM, path, dtype=torch.float32, **options)
    return model, foreign.tokenizer(path, **options)

"""What a user would run instead of this package, built for comparisons of speed with random weights."""

from __future__ import annotations

import importlib.util

import torch


def random_llama(width: int, layers: int, vocabulary: int = 2000):
    """Llama-shaped `LlamaForCausalLM`, at the default sizes of `unimed speed all` about SmolLM2-135M."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def open_clip_transform(processor):
    """open_clip's own transform for evaluation, as a user of a model of this size has it; None without open_clip."""
    if not importlib.util.find_spec("open_clip"):
        return None
    from open_clip.transform import image_transform

    return image_transform(processor.size, False, tuple(processor.mean), tuple(processor.std))

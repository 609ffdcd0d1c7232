"""A Uni-Med made from nothing: a tokenizer learnt from the user's texts, and parts of any size."""

from __future__ import annotations

import io
from collections.abc import Iterable

import torch
from transformers import LlamaConfig

from unimed.models.checkpoints.uni_med import model_config, processor_of
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.pieces import PieceTokenizer
from unimed.models.starting.texts import texts_of


def train_tokenizer(texts: Iterable[str], vocabulary: int = 600) -> bytes:
    """A SentencePiece model with the special ids of Llama-2 (unk 0, bos 1, eos 2) and the piece `$$` for padding."""
    from sentencepiece import SentencePieceTrainer

    layout = ["[INST] <Img></Img> [/INST]", *(f"[{t}]" for t in ("qa", "vqa", "refer", "identify", "caption", "cls"))]
    layout += ["{<" + "><".join(str(i + k) for k in range(4)) + ">}" for i in range(0, 97, 4)]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*layout, *texts]),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["$$"],
        minloglevel=2,
    )
    return model.getvalue()


def build_small(
    texts: Iterable[str] | str,
    *,
    image_size: int = 112,
    patch_size: int = 14,
    vision_dim: int = 96,
    vision_layers: int = 3,
    hidden_dim: int = 128,
    layers: int = 3,
    heads: int = 4,
    vocabulary: int = 600,
    connector: dict | None = None,
    seed: int = 0,
) -> GroundedMLLM:
    """A model in which everything learns, of about a million parameters.

    Args:
        texts: what the tokenizer is learnt from, or a file of records.
        connector: changes to a soft connector of five two-layer experts over four joined tokens.
    """
    tokenizer = PieceTokenizer.of(train_tokenizer(texts_of(texts), vocabulary))
    language = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden_dim,
        intermediate_size=3 * hidden_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    backbone = {
        "image_size": image_size,
        "patch_size": patch_size,
        "dim": vision_dim,
        "depth": vision_layers,
        "heads": heads,
        "mlp_hidden": 3 * vision_dim,
    }
    chosen = {"projector_type": "moe_mlp", "num_experts": 5, "resample_rate": 4, "task_token_c": 32} | (connector or {})
    torch.manual_seed(seed)
    config = model_config(backbone, chosen, language, "full", freeze_vision=False)
    model = GroundedMLLM(config)
    model.processor = processor_of(tokenizer, config, max_answer_tokens=128, max_prompt_tokens=768)
    return model

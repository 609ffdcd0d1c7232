"""A Uni-Med made from nothing: a tokenizer learnt from the user's texts, and parts of any size."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import LlamaConfig

from unimed.files import read_json_lines
from unimed.models.connectors import ConnectorConfig
from unimed.models.connectors.resample import resample
from unimed.models.uni_med.configuration import UniMedConfig
from unimed.models.uni_med.modeling import UniMedModel
from unimed.models.uni_med.processing import UniMedProcessor


def texts_of(path: str | Path) -> list[str]:
    """Questions and answers of a file of records (one JSON object per line).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of records; `tools/prepare_data.py sample` makes the sample set")
    records = [record for _, record in read_json_lines(path)]
    texts = [str(record[key]) for record in records for key in ("question", "answer") if record.get(key)]
    if not texts:
        raise ValueError(f"{path}: no record has a question or an answer")
    return texts


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
) -> UniMedModel:
    """A model in which everything learns, of about a million parameters.

    Args:
        texts: what the tokenizer is learnt from, or a file of records.
        connector: changes to a soft connector of five two-layer experts over four joined tokens.
    """
    tokenizer = train_tokenizer(texts_of(texts) if isinstance(texts, (str, Path)) else texts, vocabulary)
    chosen = {"projector_type": "moe_mlp", "num_experts": 5, "resample_rate": 4, "task_token_c": 32} | (connector or {})
    per_image = resample(torch.zeros(1, (image_size // patch_size) ** 2, 1), ConnectorConfig.from_dict(chosen)).shape[1]
    processor = UniMedProcessor(
        tokenizer, image_size=image_size, tokens_per_image=per_image, max_answer_tokens=128, max_prompt_tokens=768
    )
    language = LlamaConfig(
        vocab_size=processor.pieces.vocab_size(),
        hidden_size=hidden_dim,
        intermediate_size=3 * hidden_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=processor.bos_id,
        eos_token_id=processor.eos_id,
        pad_token_id=processor.pad_id,
    )
    vision = {
        "image_size": image_size,
        "patch_size": patch_size,
        "dim": vision_dim,
        "depth": vision_layers,
        "heads": heads,
        "mlp_hidden": 3 * vision_dim,
    }
    torch.manual_seed(seed)
    model = UniMedModel(
        UniMedConfig(vision=vision, connector=chosen, text_config=language, sft_type="full", freeze_vision=False)
    )
    model.processor = processor
    return model

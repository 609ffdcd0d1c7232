"""A contrastive model made from nothing: a tokenizer of the words of the user's texts, towers of any size."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from unimed.files import read_json_lines
from unimed.models.clip.configuration import ClipConfig
from unimed.models.clip.modeling import ClipModel
from unimed.models.clip.processing import ClipProcessor

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def texts_of(path: str | Path) -> list[str]:
    """Answers of a file of records (one JSON object per line).

    Raises:
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of records; `tools/prepare_data.py sample` makes the sample set")
    records = [record for _, record in read_json_lines(path)]
    names = ("answer", "modality", "site")
    return [str(record[name]) for record in records for name in names if record.get(name)]


def write_tokenizer(texts: Iterable[str], folder: str | Path, vocabulary: int = 600) -> int:
    """Write a lower-casing WordPiece tokenizer in BERT's layout (padding is id 0) into `folder`.

    Its pieces are all single characters and the commonest words. The same texts give the same ids on every rank, which
    a trained WordPiece does not promise.

    Returns:
        the number of pieces.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, parts = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in parts.pre_tokenize_str(normalizer.normalize_str(text)))
    signs = sorted({sign for word in counts for sign in word})
    pieces = [*_SPECIAL, *signs, *(f"##{sign}" for sign in signs)]
    words = sorted((w for w in counts if len(w) > 1), key=lambda word: (-counts[word], word))
    pieces += words[: max(0, vocabulary - len(pieces))]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, parts, decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return len(pieces)


def build_small(
    texts: Iterable[str] | str,
    *,
    image_size: int = 64,
    patch_size: int = 8,
    width: int = 128,
    layers: int = 4,
    text_width: int = 96,
    text_layers: int = 2,
    embed_dim: int = 64,
    vocabulary: int = 600,
    context_length: int = 64,
    sigmoid: bool = False,
    seed: int = 0,
) -> ClipModel:
    """A model of about a million parameters, built as UniMed-CLIP is (ViT, BERT, two-layer text head).

    Args:
        texts: whose words the tokenizer knows, or a file of records.
        sigmoid: with a bias, for the sigmoid loss.
    """
    with tempfile.TemporaryDirectory(prefix="unimed-tokenizer-") as folder:
        size = write_tokenizer(texts_of(texts) if isinstance(texts, (str, Path)) else texts, Path(folder), vocabulary)
        text_config = {
            "model_type": "bert",
            "hidden_size": text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "intermediate_size": 3 * text_width,
            "vocab_size": size,
            "max_position_embeddings": max(64, context_length),
        }
        model_cfg = {
            "embed_dim": embed_dim,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": image_size,
                "layers": layers,
                "width": width,
                "patch_size": patch_size,
                "head_width": 32,
            },
            "text_cfg": {
                "hf_model_name": "small",
                "hf_tokenizer_name": "small",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": context_length,
            },
        }
        if sigmoid:
            model_cfg |= {"init_logit_scale": 2.3025851, "init_logit_bias": -10.0}
        torch.manual_seed(seed)
        model = ClipModel(ClipConfig(model_cfg=model_cfg, text_config=text_config))
        model.processor = ClipProcessor(model.config, folder)
        model.processor.tokenizer  # noqa: B018 - read now, the folder is temporary
        return model

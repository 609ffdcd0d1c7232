"""SentencePiece text as Uni-Med was trained with it: every piece between images is encoded alone, and no text can forge
an image or a control token."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from unimed.models.backbones.eva import EvaLanguageConfig
from unimed.tokens import GROUNDING_TOKENS

#: Stands in `input_ids` where one image token goes. No id of the language model is used, so no text can forge it.
IMAGE_ID = -200
_CONTROL = ("<s>", "</s>", "<unk>")


class PieceTokenizer(SentencePieceBackend):
    """`tokenizer.model` of Llama-2 and its like: ids are exactly SentencePiece's own, `$$` (or <unk>) is padding."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}

    def __init__(self, vocab_file, pad_token: str = "$$", **options):
        options.pop("legacy", None)
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | options
        super().__init__(vocab_file=str(vocab_file), legacy=True, pad_token=None, **special)
        known = self.sp_model.piece_to_id(pad_token) != self.sp_model.unk_id()
        self.pad_token = pad_token if known else self.unk_token

    @classmethod
    def of(cls, model: str | Path | bytes, **options) -> PieceTokenizer:
        """The tokenizer of a `tokenizer.model` file, or of what is in one.

        Raises:
            FileNotFoundError: no such file.
        """
        if not isinstance(model, bytes):
            if not Path(model).is_file():
                raise FileNotFoundError(f"{model}: no tokenizer.model of the language model is there")
            return cls(model, **options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.model"
            path.write_bytes(model)
            return cls(path, **options)

    def piece_ids(self, text: str, control: bool) -> list[int]:
        """Ids of one piece of text. With `control`, the literals <s>, </s> and <unk> become ids 1, 2 and 0; the
        grounding tokens that were added to the tokenizer always act."""
        acting = {
            word: self.convert_tokens_to_ids(word) for word in GROUNDING_TOKENS if word in self.added_tokens_encoder
        }
        if control:
            acting |= dict(zip(_CONTROL, (self.bos_token_id, self.eos_token_id, self.unk_token_id), strict=True))
        if not acting:
            return self.sp_model.encode(text)
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, acting)) + ")", text):
            if part:
                ids += [acting[part]] if part in acting else self.sp_model.encode(part)
        return ids

    def piece_text(self, ids: Sequence[int]) -> str:
        """Text of ids up to the end token, without what stands before the last [/INST]."""
        ids = list(ids)
        ids = ids[: ids.index(self.eos_token_id)] if self.eos_token_id in ids else ids
        special = {self.bos_token_id, self.unk_token_id, self.pad_token_id}
        words = self.sp_model.decode([i for i in ids if 0 <= i < self.vocab_size and i not in special])
        return words.split("[/INST]")[-1]


AutoTokenizer.register(EvaLanguageConfig, slow_tokenizer_class=PieceTokenizer)

"""Prompts to features: one encoding per prompt, kept while the weights stay the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unimed.models import foreign
from unimed.models.boltzformer.processing import ParseProcessor
from unimed.models.boltzformer.tokenizing import check_prompts, tokenize

#: Prompts whose features are kept; at full size a prompt of twenty tokens takes 40 kB.
CACHE_SIZE = 4096


@dataclass
class PromptFeatures:
    """P prompts encoded: tokens [P, T, D], valid [P, T] bool, end [P, D], ids of the tokens of each prompt."""

    tokens: torch.Tensor
    valid: torch.Tensor
    end: torch.Tensor
    ids: list[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.ids)

    def repeat(self, times: int) -> PromptFeatures:
        """All prompts once more for every image, image-major."""
        tokens, valid = self.tokens.repeat(times, 1, 1), self.valid.repeat(times, 1)
        return PromptFeatures(tokens, valid, self.end.repeat(times, 1), self.ids * times)

    def select(self, places: Sequence[int]) -> PromptFeatures:
        """Some of the prompts; padding stays as it is."""
        places = list(places)
        return PromptFeatures(
            self.tokens[places], self.valid[places], self.end[places], [self.ids[place] for place in places]
        )


class PromptEncoder:
    """What a model with a `text` tower knows about prompts: its tokenizer, and features that are kept."""

    _tokenizer = None
    _kept: OrderedDict | None = None
    _stamp: tuple | None = None

    @property
    def tokenizer(self):
        """The tokenizer saved beside the weights, or CLIP's where the model has CLIP's vocabulary.

        Raises:
            RuntimeError: a model of another vocabulary that was built in memory without one.
        """
        if self._tokenizer is None:
            from pathlib import Path

            from unimed.models.boltzformer.tokenizing import clip_tokenizer

            folder = self.config._name_or_path
            # What is no folder here is the id of a hub folder.
            if folder and ((Path(folder) / "tokenizer.json").is_file() or not Path(folder).exists()):
                self._tokenizer = foreign.tokenizer(folder)
            elif self.config.text_vocab_size == 49408:
                self._tokenizer = clip_tokenizer()
            else:
                raise RuntimeError("this model was built in memory with a vocabulary of its own; set model.tokenizer")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        self._tokenizer = tokenizer

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers does; the tokenizer is saved beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._tokenizer is not None or self.config._name_or_path or self.config.text_vocab_size == 49408:
            self.tokenizer.save_pretrained(save_directory)

    @property
    def processor(self) -> ParseProcessor:
        """Images and prompts to tensors, for data workers."""
        return ParseProcessor.of(self.config, self.tokenizer)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` [P, L], padded on the right; longer prompts are cut as in CLIP."""
        return tokenize(self.tokenizer, prompts, self.config.text_length)

    def encode_ids(self, input_ids, attention_mask) -> PromptFeatures:
        """[P, L] ids and mask to features, with gradients."""
        tokens, valid, end = self.text(input_ids.to(self.device), attention_mask.to(self.device))
        rows = zip(input_ids.tolist(), attention_mask.sum(1).tolist(), strict=True)
        return PromptFeatures(tokens, valid, end, [tuple(row[:length]) for row, length in rows])

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> PromptFeatures:
        """Features of prompts for inference. Each is encoded by itself and kept as long as the weights stay.

        Raises:
            ValueError: no prompt, an empty one, or one that holds the separator `[SEP]`.
        """
        prompts = check_prompts(prompts)
        kept = self._kept_features()
        found = []
        for prompt in prompts:
            if prompt not in kept:
                one = self.encode_ids(**self.tokenize([prompt]))
                kept[prompt] = (one.tokens[0], one.end[0], one.ids[0])
            kept.move_to_end(prompt)
            found.append(kept[prompt])
        while len(kept) > CACHE_SIZE:
            kept.popitem(last=False)
        tokens = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _, _ in found], batch_first=True)
        lengths = torch.tensor([len(tokens) for tokens, _, _ in found], device=tokens.device)
        valid = torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
        return PromptFeatures(tokens, valid, torch.stack([end for _, end, _ in found]), [ids for _, _, ids in found])

    def _kept_features(self) -> OrderedDict:
        """What is kept, emptied first where a weight of the text tower was written or moved since."""
        weights = list(self.text.parameters())
        stamp = tuple((w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in weights)
        if self._kept is None or stamp != self._stamp:
            self._kept, self._stamp = OrderedDict(), stamp
        return self._kept

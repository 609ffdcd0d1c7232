"""Tokenizers of prompts: CLIP's own, and small ones learnt from the user's prompts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence

from transformers import CLIPTokenizer

from unimed.markup import without_surrogates

START, END = "<|startoftext|>", "<|endoftext|>"
#: The mark by which the published inputs join prompts; it cannot be part of one.
SEPARATOR = "[SEP]"


class PromptError(ValueError):
    """A list of prompts that cannot be asked: none, an empty one, labels that repeat."""


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of `openai/clip-vit-base-patch32`, from the vocabulary that open_clip is installed with."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges] + [START, END]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=77)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 600, length: int = 77) -> CLIPTokenizer:
    """A tokenizer like CLIP's with the frequent parts of these texts; any other text is spelt in letters.

    Args:
        vocabulary: most entries; at least 514 (every byte, inside and at the end of a word, and two marks).
        length: tokens of the longest prompt, both marks included.
    """
    from tokenizers import models, pre_tokenizers, trainers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    blank = CLIPTokenizer()
    backend = blank.backend_tokenizer
    backend.model = models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="")
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, 514),
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(list(texts), trainer)
    words = letters + [letter + "</w>" for letter in letters]
    merges = []
    for pair in json.loads(backend.to_str())["model"]["merges"]:
        word = "".join(pair)
        if len(words) < vocabulary - 2 and word not in words:
            words.append(word)
        if word in words:
            merges.append(tuple(pair))
    words += [START, END]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=length)


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Prompts as a list of texts.

    Raises:
        ValueError: no prompt, an empty one, one that holds the separator, or something that is not text.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts are a list of texts, got the text {prompts!r}; write [{prompts!r}]")
    prompts = list(prompts)
    if not prompts:
        raise ValueError("no prompt: name at least one thing to look for")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt {prompt!r} is not a text with letters in it")
        if SEPARATOR in prompt:
            raise ValueError(f"prompt {prompt!r} holds {SEPARATOR}, which separates prompts; give them one by one")
    return prompts


def labeled_prompts(prompts: Mapping[int, str] | Sequence[str] | str) -> dict[int, str]:
    """Label -> text in ascending order; a list is numbered from 1.

    Raises:
        PromptError: none, empty, or a label below 1 or above 65535.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    table = dict(prompts) if isinstance(prompts, Mapping) else dict(enumerate(prompts, 1))
    if not table:
        raise PromptError("no prompt: name at least one thing to look for")
    for label, text in table.items():
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"prompt {label} is empty; name a thing to look for")
        if not 1 <= int(label) <= 65535:
            raise PromptError(f"label {label} of {text!r} must lie in 1..65535")
    return {int(label): table[label] for label in sorted(table, key=int)}


def tokenize(tokenizer, prompts: Sequence[str], length: int) -> dict:
    """`input_ids` and `attention_mask` [P, L] of prompts, padded on the right and cut at `length` tokens, as in CLIP.

    Raises:
        ValueError: see `check_prompts`.
    """
    import ftfy

    # CLIP was trained on repaired text: a curly apostrophe is a straight one.
    texts = [ftfy.fix_text(without_surrogates(prompt)) for prompt in check_prompts(prompts)]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}

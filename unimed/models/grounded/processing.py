"""Images and conversations to the tensors a `GroundedMLLM` reads, and the tokens of an answer back to text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin

from unimed.chat import TEMPLATES, as_plain_text
from unimed.models.grounded.tiling import tile
from unimed.tokens import BOX_TOKEN, IMAGE_PLACEHOLDER, PHRASE_END, PHRASE_START, SEG_TOKEN


class PromptError(ValueError):
    """A question that cannot be asked: empty, too long, or with too many phrases."""


@dataclass
class ParsedAnswer:
    """An answer without its markers.

    `text` is what a person reads; `targets` has one entry per [SEG] and [BOX] in order: (token, phrase, span), where
    the span are character offsets of the phrase in `text`, or None where the answer marks no phrase before it.
    """

    text: str
    targets: list[tuple[str, str, tuple[int, int] | None]] = field(default_factory=list)


class GroundedProcessor(ProcessorMixin):
    """Tokenizer, tiling and chat template of one model.

    Args:
        template: name of a chat template of `unimed.chat`.
        image_start, image_token, image_end: how an image stands in the text; `image_token` is repeated.
        tokens_per_tile: image tokens of one tile.
        tile_size: side of a tile in pixels; 0 where the image tokens come from the mask head's encoder.
        max_tiles: most tiles of one image, the thumbnail not counted; 1 squashes the image to one tile.
        mask_size: side of the square the mask head sees.
        tile_mean, tile_std, mask_mean, mask_std: normalisation of values in [0, 1], per channel.
        max_prompt_tokens: longer questions are refused.
        max_phrases: more texts on one image in one call are refused.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer=None,
        template: str = "phi3_chat",
        image_start: str = "<img>",
        image_token: str = "<IMG_CONTEXT>",
        image_end: str = "</img>",
        tokens_per_tile: int = 256,
        tile_size: int = 448,
        max_tiles: int = 12,
        mask_size: int = 1024,
        tile_mean=(0.485, 0.456, 0.406),
        tile_std=(0.229, 0.224, 0.225),
        mask_mean=(0.485, 0.456, 0.406),
        mask_std=(0.229, 0.224, 0.225),
        max_prompt_tokens: int = 8192,
        max_phrases: int = 256,
        **kwargs,
    ):
        if template not in TEMPLATES:
            raise ValueError(f"no chat template {template!r}; known are {', '.join(TEMPLATES)}")
        self.template = template
        self.image_start, self.image_token, self.image_end = image_start, image_token, image_end
        self.tokens_per_tile, self.tile_size, self.max_tiles = tokens_per_tile, tile_size, max_tiles
        self.mask_size = mask_size
        self.tile_mean, self.tile_std = list(tile_mean), list(tile_std)
        self.mask_mean, self.mask_std = list(mask_mean), list(mask_std)
        self.max_prompt_tokens, self.max_phrases = max_prompt_tokens, max_phrases
        super().__init__(tokenizer)

    # -- images -------------------------------------------------------------------------------------------------
    def tiles(self, image: np.ndarray, max_tiles: int | None = None) -> torch.Tensor | None:
        """HxWx3 uint8 -> [T, 3, s, s] normalised; None where the model needs no tiles."""
        if not self.tile_size:
            return None
        pictures = tile(Image.fromarray(image), self.tile_size, max_tiles or self.max_tiles)
        return torch.stack([_normalised(picture, self.tile_mean, self.tile_std) for picture in pictures])

    def mask_pixels(self, image: np.ndarray) -> torch.Tensor:
        """HxWx3 uint8 -> [3, S, S]: the whole image squashed to the square of the mask head (bicubic)."""
        squashed = Image.fromarray(image).resize((self.mask_size, self.mask_size), Image.Resampling.BICUBIC)
        return _normalised(squashed, self.mask_mean, self.mask_std)

    def image_text(self, tile_count: int) -> str:
        """What stands for an image of so many tiles in the text."""
        return self.image_start + self.image_token * (self.tokens_per_tile * tile_count) + self.image_end

    # -- questions ----------------------------------------------------------------------------------------------
    def question(self, text: str, tile_count: int, literal: bool = True) -> str:
        """User turn with the image in its place.

        Args:
            text: the question; "<image>" says where the image stands, otherwise it comes first.
            tile_count: 0 for a question without an image.
            literal: read control strings in `text` as plain text (always, except for published inputs).

        Raises:
            PromptError: nothing but white space, or "<image>" more than once.
        """
        before, mark, after = text.partition(IMAGE_PLACEHOLDER)
        if IMAGE_PLACEHOLDER in after:
            raise PromptError(f"{IMAGE_PLACEHOLDER} stands more than once in the question; one image per question")
        if not (before + after).strip():
            raise PromptError("the question is empty")
        if literal:
            before, after = as_plain_text(before), as_plain_text(after)
        if not tile_count:
            return before + after
        if mark:
            return before + self.image_text(tile_count) + after
        return self.image_text(tile_count) + "\n" + before

    def encode_prompt(self, turns: list[tuple[str, str]], tile_count: int, literal: bool = True) -> list[int]:
        """Ids of a conversation up to where the model answers.

        Raises:
            PromptError: empty or longer than `max_prompt_tokens`.
        """
        # The image belongs to the first question; later ones speak of the same image.
        written = [
            (role, self.question(text, tile_count if index == 0 else 0, literal) if role == "user" else text)
            for index, (role, text) in enumerate(turns)
        ]
        ids = self._ids(TEMPLATES[self.template].prompt(written))
        if len(ids) > self.max_prompt_tokens:
            raise PromptError(f"the question has {len(ids)} tokens, the model reads at most {self.max_prompt_tokens}")
        return ids

    def encode_example(self, conversation, tile_count: int) -> tuple[list[int], list[int]]:
        """Ids and labels of a training conversation; loss on answers and their stop words only."""
        template = TEMPLATES[self.template]
        ids, labels = [], []
        for index in range(0, len(conversation) - 1, 2):
            (_, question), (_, answer) = conversation[index], conversation[index + 1]
            asked = template.user.replace("{text}", self.question(question, tile_count if index == 0 else 0))
            prompt = self._ids(asked)
            said = self._ids(answer + template.stop)
            ids += prompt + said
            labels += [-100] * len(prompt) + said
        return ids, labels

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # -- answers ------------------------------------------------------------------------------------------------
    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the tokenizer's own end, and the stop word where it is one token."""
        stop = self._ids(TEMPLATES[self.template].stop)
        ids = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return ids + (stop if len(stop) == 1 else [])

    def stopped(self, ids: list[int]) -> bool:
        """Whether the newest tokens spell the stop word (it may be several tokens)."""
        stop = TEMPLATES[self.template].stop
        return stop in self.tokenizer.decode(ids[-(len(stop) + 2) :], skip_special_tokens=False)

    def raw_text(self, ids: list[int]) -> str:
        """Text of an answer with all its markers, as UniBiomed returns it."""
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip()

    def parse(self, ids: list[int]) -> ParsedAnswer:
        """Text without markers, and what each [SEG] and [BOX] points at.

        A target counts only where its token was said: the same letters spelled in pieces are plain text.
        """
        stop = TEMPLATES[self.template].stop
        marks = {self.tokenizer.convert_tokens_to_ids(token): token for token in (SEG_TOKEN, BOX_TOKEN)}
        end = self.tokenizer.eos_token
        text, targets, phrase, start = "", [], None, None
        chunk: list[int] = []

        def take(chunk):
            nonlocal text, phrase, start
            words = self.tokenizer.decode(chunk, skip_special_tokens=False) if chunk else ""
            words = words.split(stop)[0]
            if end:
                words = words.replace(end, "")
            for piece in re.split(f"({re.escape(PHRASE_START)}|{re.escape(PHRASE_END)})", words):
                if piece == PHRASE_START:
                    start, phrase = len(text), None
                elif piece == PHRASE_END:
                    if start is not None:
                        inner = text[start:]
                        left = start + len(inner) - len(inner.lstrip())
                        phrase = (left, max(left, len(text.rstrip())))
                    start = None
                elif piece:
                    piece = re.sub(r"\s+", " ", piece)
                    if not text or text.endswith(" "):
                        piece = piece.lstrip(" ")
                    if re.match(r"[.,;:!?]", piece.lstrip()):
                        text, piece = text.rstrip(" "), piece.lstrip()
                    text += piece

        for token in ids:
            if token in marks:
                take(chunk)
                chunk = []
                span = phrase if phrase and phrase[1] > phrase[0] else None
                targets.append((marks[token], text[slice(*span)] if span else "", span))
            else:
                chunk.append(token)
        take(chunk)
        return ParsedAnswer(text.rstrip(), targets)


def _normalised(picture: Image.Image, mean, std) -> torch.Tensor:
    values = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


AutoProcessor.register("unimed_grounded", GroundedProcessor)

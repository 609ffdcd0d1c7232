"""Conversations as the token ids a model reads, and the ids of an answer back to text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from unimed.chat import TEMPLATES, ChatTemplate, as_plain_text
from unimed.markup import without_surrogates
from unimed.models.grounded.answers import ParsedAnswer, Target, parse_pieces, pieces_of_text, split_boxes
from unimed.models.grounded.llava_text import separate_ids
from unimed.models.grounded.pieces import IMAGE_ID, PieceTokenizer
from unimed.models.grounded.regions import PromptError, region_text
from unimed.tokens import BOX_TOKEN, IMAGE_PLACEHOLDER, SEG_TOKEN


class ConversationText:
    """Mixin of `GroundedProcessor`: what stands in its options about text, tokens and templates, at work."""

    @property
    def in_pieces(self) -> bool:
        """Whether text between images is encoded piece by piece, see `PieceTokenizer`."""
        return isinstance(self.tokenizer, PieceTokenizer)

    @property
    def image_token_id(self) -> int:
        """What stands in `input_ids` for one image token."""
        return IMAGE_ID if self.in_pieces else self.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def pad_id(self) -> int:
        """What fills short rows; never the image token."""
        padding = self.tokenizer.pad_token_id or 0
        return padding if padding != self.image_token_id else 0

    @property
    def chat(self) -> ChatTemplate:
        """How turns are written."""
        return TEMPLATES[self.template] if isinstance(self.template, str) else ChatTemplate(**self.template)

    # -- questions ----------------------------------------------------------------------------------------------
    def question(self, text: str, unit_count: int | Sequence[int], literal: bool = True, cells=None) -> str:
        """User turn with the image in its place.

        Args:
            text: the question; "<image>" says where the image stands, otherwise it comes first.
            unit_count: see `unit_count`; 0 for a question without an image, one number per frame for several.
            literal: read control strings in `text` as plain text (always, except for published inputs).
            cells: bool [N, rows, columns], the image tokens under N regions given with the question; they stand
                behind the image.

        Raises:
            PromptError: nothing but white space, or "<image>" more than once.
        """
        before, mark, after = text.partition(IMAGE_PLACEHOLDER)
        if IMAGE_PLACEHOLDER in after:
            raise PromptError(f"{IMAGE_PLACEHOLDER} stands more than once in the question; one image per question")
        if not (before + after).strip():
            raise PromptError("the question is empty")
        if literal and not self.in_pieces:  # pieces of text hold no control tokens
            before, after = self.plain(before), self.plain(after)
        if not unit_count:
            return before + after
        image = self.image_text(unit_count)
        image += "" if cells is None else region_text(cells, self.image_token)
        if mark:
            return before + image + after
        return image + (self.image_gap if cells is None else "") + before + self.question_end

    def encode_prompt(
        self,
        turns: list[tuple[str, str]],
        unit_count: int | Sequence[int],
        literal: bool = True,
        cells=None,
        past_text: str = "",
        reader=None,
    ) -> list[int]:
        """Ids of a conversation up to where the model answers.

        Args:
            past_text: turns before, already written in the template of the model; the image may stand there.
            reader: of a native backbone (`NativeInputs.reader`), which makes ids of text and images.

        Raises:
            PromptError: empty or longer than `max_prompt_tokens`.
        """
        if past_text and IMAGE_PLACEHOLDER not in turns[0][1]:
            unit_count = 0  # it stands in what was said before
        # The image belongs to the first question; later ones speak of the same image.
        written = [
            (role, text if role != "user" else self._turn(text, index, unit_count, literal, cells))
            for index, (role, text) in enumerate(turns)
        ]
        text = past_text + self.chat.prompt(written, "" if past_text else self.system)
        if self.in_pieces:
            return self._piece_prompt(text, predicting=True)
        ids = (reader or self.prompt_ids)(text)
        if len(ids) > self.max_prompt_tokens:
            raise PromptError(
                f"the question has {len(ids)} tokens, the model reads at most {self.max_prompt_tokens}; shorten it"
            )
        return ids

    def _turn(self, text: str, index: int, unit_count, literal: bool, cells) -> str:
        return self.question(text, unit_count, literal, cells) if index == 0 else self.question(text, 0, literal)

    def encode_example(
        self, conversation, unit_count: int | Sequence[int], cells=None, reader=None
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of a training conversation; loss on answers and their stop words only.

        Args are those of `encode_prompt`.
        """
        template = self.chat
        ids, labels = [], []
        for index in range(0, len(conversation) - 1, 2):
            (_, question), (_, answer) = conversation[index], conversation[index + 1]
            asked = self._turn(question, index, unit_count, True, cells)
            asked = template.prompt([("user", asked)], "" if index else self.system)
            if self.in_pieces:
                later = [self.tokenizer.bos_token_id, *self._ids(asked)] if index else []
                prompt = later or self._piece_prompt(asked)
                limit = None if len(conversation) > 2 and self.compat == "reference" else self.max_answer_tokens
                answer_ids = self._piece_answer(answer, limit)
            else:
                prompt = self._ids(asked) if index else (reader or self.prompt_ids)(asked)
                answer_ids = self._ids(answer + self.stop_word)
            ids += prompt + answer_ids
            # The padding piece may stand in an answer: nothing is learnt there.
            labels += [-100] * len(prompt) + [-100 if self.in_pieces and i == self.pad_id else i for i in answer_ids]
        return ids, labels

    def _piece_prompt(self, text: str, predicting: bool = False) -> list[int]:
        """Ids of a question with its images, no longer than `max_prompt_tokens` without the BOS.

        Raises:
            PromptError: the images alone leave no room.
        """
        reference, limit = self.compat == "reference", self.max_prompt_tokens
        if predicting and reference and "[caption]" not in text:
            text = re.sub(r" +(?= \[/INST\]$)| +$", "", text)
        head, mark, tail = text.rpartition(self.image_token)
        ids, last = self._ids(head + mark) if mark else [], self._ids(tail)
        if reference or not self.cut_prompts:
            ids = ids + last
            if not reference and len(ids) > limit:
                raise PromptError(f"the question has {len(ids)} tokens, the model reads at most {limit}")
            ids = ids[:limit]
        else:
            room, keep = limit - len(ids), 16
            if len(last) > room and room < 2 * keep:
                raise PromptError(f"the images alone need {len(ids)} of {limit} tokens; raise max_prompt_tokens")
            if len(last) > room:
                # Its head says the task, its end holds the sign to answer: both stay.
                last = last[:keep] + last[len(last) - (room - keep) :]
            ids = ids + last
        return [self.tokenizer.bos_token_id] * (2 if predicting and reference else 1) + ids

    def _piece_answer(self, text: str, limit: int | None) -> list[int]:
        if self.compat == "reference":
            return self.tokenizer.piece_ids(text + self.stop_word, control=True)[:limit]
        end = self.tokenizer.piece_ids(self.stop_word, control=True)
        words = self.tokenizer.piece_ids(text, control=False)
        return (words if limit is None else words[: limit - len(end)]) + end

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a conversation that is written out already."""
        begins = self.bos and self.tokenizer.bos_token_id is not None
        return ([self.tokenizer.bos_token_id] if begins else []) + self._ids(text)

    def _ids(self, text: str) -> list[int]:
        text = without_surrogates(text)
        if self.in_pieces:
            ids = []
            for part in re.split(f"((?:{re.escape(self.image_token)})+)", text):
                if part.startswith(self.image_token):
                    ids += [IMAGE_ID] * (len(part) // len(self.image_token))
                elif part:
                    ids += self.tokenizer.piece_ids(part, control=self.compat == "reference")
            return ids
        if self.separate_tokens:
            return separate_ids(self.tokenizer, text)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def plain(self, text: str) -> str:
        """`as_plain_text`, and for a native backbone every token of its own that may not stand in a question."""
        text = as_plain_text(text)
        if self.native is not None:
            for token in self.native.control:
                text = text.replace(token, token[0] + " " + token[1:])
        return text

    # -- answers ------------------------------------------------------------------------------------------------
    def answer_ids(self, answer: str | Sequence[int]) -> list[int]:
        """Ids of an answer that another engine wrote, up to its stop, which is put there where it is missing.

        Args:
            answer: text with its markers, or ids.

        Raises:
            PromptError: the answer holds tokens of images, or ids that the model does not know.
        """
        if isinstance(answer, str):
            words = answer.split(self.stop_word)[0] if self.stop_word else answer
            ids = self._piece_answer(words, None) if self.in_pieces else self._ids(words + self.stop_word)
        else:
            ids, stops = list(answer), set(self.stop_ids)
            end = next((place for place, token in enumerate(ids) if token in stops), None)
            ids = ids + self.stop_ids[-1:] if end is None else ids[: end + 1]
        size = len(self.tokenizer)
        if self.image_token_id in ids or not all(0 <= token < size for token in ids):
            raise PromptError("the answer holds tokens of images, or ids that this tokenizer does not have")
        return ids

    @property
    def stop_word(self) -> str:
        """What ends an answer."""
        return self.chat.stop if self.stop is None else self.stop

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the tokenizer's own end, and the stop word where it is one token."""
        stop = [] if self.in_pieces else self._ids(self.stop_word)
        ids = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return ids + (stop if len(stop) == 1 else [])

    def stopped(self, ids: list[int]) -> bool:
        """Whether the newest tokens spell the stop word (it may be several tokens)."""
        if self.in_pieces:
            return False
        stop = self.stop_word
        return stop in self.tokenizer.decode(ids[-(len(stop) + 2) :], skip_special_tokens=False)

    def raw_text(self, ids: list[int]) -> str:
        """Text of an answer with all its markers, as UniBiomed returns it."""
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip()

    def parse(self, answer: str | Sequence[int] | torch.Tensor, size_hw: tuple[int, int] | None = None) -> ParsedAnswer:
        """Text without markers, and what each [SEG], [BOX] and written box points at.

        Of ids a target counts only where its token was said: the same letters spelled in pieces are plain text. Of text
        every marker counts.

        Args:
            answer: ids of one answer (without its question), or its text.
            size_hw: of the image in pixels; needed where the dialect writes boxes in pixels.
        """
        stop, end = self.stop_word, self.tokenizer.eos_token
        if isinstance(answer, str):
            spelled = {SEG_TOKEN: SEG_TOKEN, BOX_TOKEN: BOX_TOKEN}
            return self._parsed(pieces_of_text(answer, spelled, (stop, end)), size_hw)
        marks, pieces, chunk = self._marks(), [], []

        def take() -> str:
            if self.in_pieces:
                words = self.tokenizer.piece_text(chunk)
            else:
                words = self.tokenizer.decode(chunk, skip_special_tokens=False) if chunk else ""
                words = words.split(stop)[0]
            chunk.clear()
            return words.replace(end, "") if end else words

        for token in answer.tolist() if isinstance(answer, torch.Tensor) else answer:
            if token in marks:
                pieces += [take(), Target(marks[token])]
            else:
                chunk.append(token)
        return self._parsed([*pieces, take()], size_hw)

    def _parsed(self, pieces, size_hw) -> ParsedAnswer:
        boxes = self.dialect.boxes
        if boxes is not None and (size_hw is not None or boxes.scale is not None):
            read = (1, 1) if size_hw is None else self.read_size(size_hw)
            pieces = [part for piece in pieces for part in split_boxes(piece, boxes, read)]
        return parse_pieces(pieces, self.phrase_style)

    def _marks(self) -> dict[int, str]:
        """Ids of the tokens that point at something, as far as the tokenizer has them."""
        spelled = {SEG_TOKEN: SEG_TOKEN, self.box_token: BOX_TOKEN}
        ids = {self.tokenizer.convert_tokens_to_ids(token): name for token, name in spelled.items()}
        return {i: name for i, name in ids.items() if i is not None and i != self.tokenizer.unk_token_id}


def asked_phrase(text: str) -> str:
    """What a question asks for, for regions whose answer marks no phrase."""
    asked = re.search(r"(?:segment|where is|find|show|outline)\s+(?:the\s+)?(.+?)[.?!]*$", text, re.IGNORECASE)
    return (asked[1] if asked else text.replace(IMAGE_PLACEHOLDER, "").strip())[:200]

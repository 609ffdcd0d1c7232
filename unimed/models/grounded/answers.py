"""An answer with its markers to readable text, and what each marker points at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from unimed.models.grounded.llava_text import sentence_phrase
from unimed.tokens import BOX_TOKEN, PHRASE_END, PHRASE_START

_TAGS = re.compile(f"({re.escape(PHRASE_START)}|{re.escape(PHRASE_END)})")


@dataclass(frozen=True)
class Target:
    """What one marker points at.

    `token` is "[SEG]" or "[BOX]"; `span` are the character offsets of `phrase` in the text of the answer, None where
    the answer marks no phrase before it. `box_fraction` (x1, y1, x2, y2 as fractions of width and height) is there
    where the box is written in the text itself.
    """

    token: str
    phrase: str = ""
    span: tuple[int, int] | None = None
    box_fraction: tuple[float, float, float, float] | None = None


@dataclass
class ParsedAnswer:
    """An answer without its markers: `text` is what a person reads, `targets` one entry per marker, in order."""

    text: str
    targets: list[Target] = field(default_factory=list)


def parse_pieces(pieces: Iterable[str | Target], phrase_style: str = "tags") -> ParsedAnswer:
    """An answer from its pieces: words, and bare `Target`s where a marker stands.

    Args:
        phrase_style: see `GroundedProcessor`.
    """
    reader = _Reader()
    targets, start = [], 0
    for piece in pieces:
        if isinstance(piece, str):
            reader.read(piece)
            continue
        if phrase_style == "sentence":
            reader.phrase = sentence_phrase(reader.text, start) or reader.phrase
            start = len(reader.text)
        span = reader.phrase if reader.phrase and reader.phrase[1] > reader.phrase[0] else None
        phrase = reader.text[slice(*span)] if span else piece.phrase
        targets.append(Target(piece.token, phrase, span, piece.box_fraction))
    return ParsedAnswer(reader.text.rstrip(), targets)


class _Reader:
    """Text so far without <p> and </p>, and the span of the phrase that was marked last."""

    def __init__(self):
        self.text, self.phrase, self.start = "", None, None

    def read(self, words: str) -> None:
        for piece in _TAGS.split(words):
            if piece == PHRASE_START:
                self.start, self.phrase = len(self.text), None
            elif piece == PHRASE_END:
                if self.start is not None:
                    inner = self.text[self.start :]
                    left = self.start + len(inner) - len(inner.lstrip())
                    self.phrase = (left, max(left, len(self.text.rstrip())))
                self.start = None
            elif piece:
                piece = re.sub(r"\s+", " ", piece)
                if not self.text or self.text.endswith(" "):
                    piece = piece.lstrip(" ")
                if re.match(r"[.,;:!?]", piece.lstrip()):
                    self.text, piece = self.text.rstrip(" "), piece.lstrip()
                self.text += piece


def pieces_of_text(text: str, marks: dict[str, str], ends: Sequence[str]) -> list[str | Target]:
    """Text up to the first of `ends`, parted at its markers.

    Args:
        marks: {spelling: token}.
    """
    for end in ends:
        text = text.split(end)[0] if end else text
    parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
    return [Target(marks[part]) if part in marks else part for part in parts]


def split_boxes(piece: str | Target, boxes, size_hw: tuple[int, int]) -> list[str | Target]:
    """A piece of an answer, parted where boxes are written in it by a `BoxFormat`.

    A format that names the phrase gives way to the phrase; any other stays in the text.
    """
    if isinstance(piece, Target):
        return [piece]
    parts, place = [], 0
    for (start, stop), phrase, found in boxes.read(piece, size_hw):
        kept = f"{PHRASE_START} {phrase} {PHRASE_END}" if phrase else piece[start:stop]
        if boxes.names_phrase and not phrase:
            kept = ""
        parts += [piece[place:start] + kept, *(Target(BOX_TOKEN, box_fraction=box) for box in found)]
        place = stop
    return [*parts, piece[place:]]

"""Guesses of what comes next in an answer, from the question and from earlier answers: prompt-lookup decoding.

Answers repeat the words of their question (a report that is to be grounded), and those of other answers ("Sure, it is
[SEG]."). Guessed tokens are read in one pass and kept as far as the model would have said them, so that the answer is
that of greedy decoding. Source: Saxena, "Prompt Lookup Decoding" (2023), `prompt_lookup_num_tokens` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Stands in a prompt where no word does; nothing is guessed from it or across it.
NO_WORD = -1
#: Tokens that must have been the same before a guess is made from the words behind them; longer ones are tried first.
_SIZES = (3, 2)
#: A single token counts only so many tokens behind the place where the last guess came from.
_NEAR = 12


class EarlierAnswers:
    """Distinct answers, the newest last; no more than `most` of them.

    Args:
        most: how many are kept. longest: of longer answers their beginning is kept.
    """

    def __init__(self, most: int = 16, longest: int = 256):
        self.most, self.longest = most, longest
        self.answers: list[tuple[int, ...]] = []

    def add(self, ids: Sequence[int]) -> None:
        """Keep an answer as the newest."""
        kept = tuple(ids[: self.longest])
        if not kept:
            return
        if kept in self.answers:
            self.answers.remove(kept)
        self.answers = [*self.answers, kept][-self.most :]


class Drafts:
    """Guesses for one row.

    Args:
        prompt: its ids, `NO_WORD` where an image stands.
        most: longest guess in tokens. What was guessed right lets the next guess be longer, up to twice as much; what
            was guessed wrong makes it shorter.
        before: answers to other questions.
    """

    def __init__(self, prompt: Sequence[int], most: int, before: Sequence[Sequence[int]] = ()):
        self.most = self.length = most
        self.text: list[int] = []
        self.places: dict[tuple[int, ...], list[int]] = {}
        self.copied_to = 0
        for part in (*before, prompt):
            self._read(part)
            self.text.append(NO_WORD)
        self.newest = tuple(before[-1]) if before else ()

    def guess(self, answer: Sequence[int], room: int) -> list[int]:
        """What may follow `answer`, as far as it is known; no more than `room` tokens, none where nothing is known.

        Args:
            answer: as at the last call, and what was said since.
        """
        length = min(self.length, room)
        if length <= 0:
            return []
        if not answer:
            return list(self.newest[:length])
        place = self._found(answer)
        if place is None:
            return []
        self.copied_to = place
        found = self.text[place : place + length]
        return found[: found.index(NO_WORD)] if NO_WORD in found else found

    def judge(self, guessed: int, right: int) -> None:
        """How many of the tokens of the last guess were right."""
        if guessed:
            self.copied_to += right
            self.length = min(2 * self.most, self.length + 2) if right == guessed else max(2, self.length - 1)

    def extend(self, new: Sequence[int]) -> None:
        """Note what was said: an answer also repeats itself."""
        self._read(new)

    def _read(self, part: Sequence[int]) -> None:
        for token in part:
            self.text.append(token)
            for size in (1, *_SIZES):
                words = tuple(self.text[-size:])
                if len(words) == size and NO_WORD not in words:
                    self.places.setdefault(words, []).append(len(self.text))

    def _found(self, answer: Sequence[int]) -> int | None:
        """Where the text goes on after the newest tokens: behind the last guess if it can, else where it was last."""
        for size in _SIZES:
            # The last place is what was just said.
            places = [p for p in self.places.get(tuple(answer[-size:]), ()) if p < len(self.text)]
            if len(answer) >= size and places:
                return next((p for p in places if p > self.copied_to), places[-1])
        near = (p for p in self.places.get((answer[-1],), ()) if self.copied_to < p <= self.copied_to + _NEAR)
        return next((p for p in near if p < len(self.text)), None)

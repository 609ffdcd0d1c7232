"""What a dialect is: the words, marks and numbers that a checkpoint was trained with."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from unimed.data import canonical
from unimed.models.dialects.boxes import Box, BoxFormat
from unimed.models.dialects.pools import TemplateError, load_pools
from unimed.structures import Region, Sample, Task, Written
from unimed.tokens import BOX_TOKEN, PHRASE_END, PHRASE_START, SEG_TOKEN

Size = tuple[int, int]
_GROUP = re.compile(
    rf"(?:{re.escape(PHRASE_START)}\s*(?P<phrase>.*?)\s*{re.escape(PHRASE_END)}\s*)?"
    rf"(?P<marks>(?:{re.escape(SEG_TOKEN)}|{re.escape(BOX_TOKEN)})(?:\s*(?:{re.escape(SEG_TOKEN)}|{re.escape(BOX_TOKEN)}))*)"
)
_TAG = re.compile(rf"\s*(?:{re.escape(PHRASE_START)}|{re.escape(PHRASE_END)})\s*")


class Dialect:
    """How one family of checkpoints asks, answers, points and marks.

    Args:
        pools: JSON file {pool: [wordings]} in place of the dialect's own.
        compat: "reference" repeats quirks of the published system, where the dialect knows any.

    Class attributes say the rest:

    - `seg_token`, `box_token`: whether [SEG] and [BOX] are tokens whose states prompt the heads;
    - `boxes`: how a box is written in the text, where it is no token. A mask that cannot be pointed at is named by the
      box around it, a box by `boxes`;
    - `marks_phrases`: whether phrases stand between <p> and </p>;
    - `shows_regions`: whether a region given with the question is shown by its image tokens, or by its box as text;
    - `wordings`: {pool: sentences}, `{}` where the subject goes; `pool_of`: kind of an intent -> its pool.
    """

    name = ""
    seg_token = True
    box_token = True
    boxes: BoxFormat | None = None
    marks_phrases = True
    shows_regions = True
    wordings: Mapping[str, Sequence[str]] = {}
    pool_of: Mapping[str, str] = {}

    def __init__(self, pools: str | None = None, compat: str | None = None):
        if compat not in (None, "reference"):
            raise TemplateError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
        self.pools, self.compat = pools, compat

    def to_dict(self) -> dict:
        """What builds it again, for the configuration of a processor."""
        return {"type": self.name, "pools": self.pools, "compat": self.compat}

    # -- training and test samples ----------------------------------------------------------------------------------
    def write(self, sample: Sample, size_of: Callable[[Size], Size] | None = None) -> Sample:
        """The sample in the words of this dialect; one that is written already comes back as it is.

        Args:
            size_of: (height, width) of an image -> that of the image the model reads, for boxes in its pixels.
        """
        if sample.written is not None:
            return sample
        sample = self.word(canonical.with_conversation(sample))
        size = self._size(sample)
        read = size if size_of is None or size is None else size_of(size)
        regions, pointed = iter(canonical.pointed_regions(sample)), []
        turns = []
        for role, text in sample.conversation:
            if role == "assistant":
                text = self._points(text, regions, pointed, size, read)
            turns.append((role, text))
        given = tuple(sample.regions) if sample.task is Task.REGION else ()
        if given and not self.shows_regions:
            turns[0] = ("user", self._named_by_box(turns[0][1], given, size, read))
            given = ()
        first = self.tagged(sample.task, turns[0][1], len(sample.images))
        later = [(role, text if role != "user" else self.tagged(sample.task, text, 0)) for role, text in turns[1:]]
        answer = "".join(text for role, text in turns if role == "assistant")
        spans = tuple(canonical.with_span(region, answer) for region in sample.regions)
        return replace(
            sample, conversation=(("user", first), *later), regions=spans,
            written=Written(self.name, tuple(pointed), given),
        )  # fmt: skip

    def word(self, sample: Sample) -> Sample:
        """The sample with wordings of this dialect in place of the canonical ones, where it has a pool for its kind."""
        intent = sample.intent
        if intent is None or len(sample.conversation) != 2:
            return sample
        asked, answer = sample.conversation[0][1], sample.conversation[1][1]
        if intent.kind in self.pool_of:
            asked = self.wording(self.pool_of[intent.kind], intent.subject, intent)
        if f"answer:{intent.answer_kind}" in self.pool_of:
            answer = self.wording(self.pool_of[f"answer:{intent.answer_kind}"], intent.answer_subject, intent)
        return replace(sample, conversation=(("user", asked), ("assistant", answer)))

    def wording(self, pool: str, subject: str, intent) -> str:
        """A sentence of a pool about `subject`, drawn or the fixed one, as the intent says.

        Raises:
            TemplateError: no such pool, or no such entry.
        """
        sentences = self.read_pools(intent.pools or self.pools).get(pool)
        if sentences is None:
            raise TemplateError(f"unknown pool {pool!r}; known are {', '.join(self.wordings)}")
        number = intent.number
        if number is None:
            number = random.randrange(len(sentences)) if intent.drawn else self.fixed(sentences)
        if not 0 <= number < len(sentences):
            raise TemplateError(f"pool {pool!r} has {len(sentences)} entries, there is no entry {number}")
        return sentences[number].replace("{}", subject)

    def fixed(self, sentences: Sequence[str]) -> int:
        """Which sentence of a pool is asked where none is drawn."""
        return 0

    def read_pools(self, path: str | None) -> dict[str, list[str]]:
        """The dialect's pools, with those of a file in their place; errors as `load_pools`."""
        return load_pools(path, self.wordings)

    # -- questions and answers ---------------------------------------------------------------------------------------
    def tagged(self, task: Task, question: str, images: int) -> str:
        """The question with the word of its task, where the dialect has one."""
        return question

    def asked(self, text: str, task: str | None, with_image: bool) -> tuple[str | None, str]:
        """What a user typed as (task, question), in the form of this dialect."""
        return task, text

    def point(self, phrase: str, tagged: bool, marks: Sequence[tuple[str, Region]], size: Size, read: Size) -> str:
        """What stands for a phrase and all that it points at.

        Args:
            tagged: whether the phrase stood there as such; otherwise it is the name of the region.
            marks: (token, region), regions with what the token needs.
            size: of the image in pixels; read: of the image the model reads.
        """
        tokens = [token for token, _ in marks if self._is_token(token)]
        boxes = [_fraction(region.box_xyxy_px, size) for token, region in marks if not self._is_token(token)]
        parts = []
        if boxes:
            # A format that names its phrase says it itself; any other stands behind the phrase, if it stood there.
            parts.append(self.boxes.write(phrase if tagged or self.boxes.names_phrase else "", boxes, read))
        elif tagged:
            parts.append(f"{PHRASE_START} {phrase} {PHRASE_END}" if self.marks_phrases else phrase)
        return " ".join([*parts, *tokens])

    def read_boxes(self, text: str, size_hw: Size) -> list[tuple[tuple[int, int], str, list[Box]]]:
        """(span, phrase, boxes as fractions) of the boxes that are written in an answer; see `BoxFormat.read`."""
        return [] if self.boxes is None else self.boxes.read(text, size_hw)

    # -- inside -------------------------------------------------------------------------------------------------------
    def _is_token(self, token: str) -> bool:
        return self.seg_token if token == SEG_TOKEN else self.box_token

    def _points(self, text: str, regions, pointed: list[Region], size, read) -> str:
        def rewrite(match: re.Match) -> str:
            tokens = canonical.POINTERS.findall(match["marks"])
            found = [self._pointed_by(token, region) for token, region in zip(tokens, regions, strict=False)]
            if len(found) < len(tokens):
                return match[0]  # the collator names a sample whose tokens and regions disagree
            marks = [mark for mark in found if mark is not None]
            pointed.extend(region for token, region in marks if self._is_token(token))
            if match["phrase"] is None and [token for token, _ in marks] == tokens and all(map(self._is_token, tokens)):
                return match[0]
            phrase = match["phrase"] or (marks[0][1].phrase if marks else "")
            return self.point(phrase, match["phrase"] is not None, marks, size, read)

        text = _GROUP.sub(rewrite, text)
        return text if self.marks_phrases else re.sub(r" +([.,;:!?])", r"\1", _TAG.sub(" ", text)).strip()

    def _pointed_by(self, token: str, region: Region) -> tuple[str, Region] | None:
        """The token that points at a region here, with what it needs; None where there is nothing to point at."""
        if token == SEG_TOKEN and self.seg_token:
            return token, region
        box = region.box_xyxy_px
        if box is None and region.mask is not None:
            box = canonical.box_of_mask(region.mask)
        if token == BOX_TOKEN and self.box_token and box is None:
            return token, region
        return None if box is None else (BOX_TOKEN, replace(region, box_xyxy_px=box))

    def _named_by_box(self, question: str, given: Sequence[Region], size: Size, read: Size) -> str:
        for number, region in enumerate(given, start=1):
            box = region.box_xyxy_px or (None if region.mask is None else canonical.box_of_mask(region.mask))
            if box is not None and self.boxes is not None:
                question = question.replace(f"region{number}", self.boxes.write("", [_fraction(box, size)], read))
        return question

    def _size(self, sample: Sample) -> Size | None:
        if not sample.images:
            return None
        shape = sample.images[0].shape
        return tuple(shape[1:3]) if canonical.is_volume(sample) else tuple(shape[:2])


def _fraction(box: Box, size: Size) -> Box:
    (x1, y1, x2, y2), (height, width) = box, size
    return x1 / width, y1 / height, x2 / width, y2 / height

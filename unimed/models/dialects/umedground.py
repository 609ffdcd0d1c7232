"""uMedGround: a report, phrase or question in, phrases and [BOX] out, in the strings of its checkpoints."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from unimed.data.canonical import pointed_phrases
from unimed.models.dialects.base import Dialect
from unimed.models.dialects.boxes import INTERNVL
from unimed.models.dialects.pools import TemplateError
from unimed.models.dialects.unibiomed import POOL_OF, POOLS, read_pools
from unimed.registry import DIALECTS
from unimed.structures import Sample
from unimed.tokens import BOX_TOKEN, IMAGE_PLACEHOLDER

STYLES = ("tags", "published")
#: What is asked after the report; one is drawn in training, the first is asked in tests.
QUESTIONS = (
    "Please divide this report into phrases and output bounding boxes.",
    "Please divide the report into phrases with corresponding detection boxes.",
    "Please extract key phrases and their bounding boxes from this report.",
    "Please output key phrases and their bounding boxes from this report.",
    "Please find key phrases and their bounding boxes from the report.",
)
#: What stands between a phrase and its end; one is drawn per phrase in training, the second is used in tests.
ENDINGS = (f"{BOX_TOKEN}.", f"It is {BOX_TOKEN}.", f"The detection result is {BOX_TOKEN}.")
TEST_ENDING = ENDINGS[1]
ABSENT = "It is not visible."


def question(text: str, number: int = 0, published: bool = False, training: bool = False) -> str:
    """The report or question with what is asked of it.

    Args:
        number: of the wording in `QUESTIONS`.
        published: as the released loader writes it, the image first and, in tests, one more blank.
        training: see `published`.
    """
    words = f"{text} {QUESTIONS[number]}"
    if not published:
        return words
    return f"{IMAGE_PLACEHOLDER}\n{words}" if training else f"{IMAGE_PLACEHOLDER}\n {words}"


def answer(phrases: Sequence[tuple[str, int]], style: str = "tags", endings: Sequence[str] | None = None) -> tuple:
    """Text that names phrases and points at their boxes, and per phrase its span in it.

    Args:
        phrases: (phrase, number of boxes); 0 where the phrase has no place in the image.
        style: "tags", "<p> phrase </p> [BOX] [BOX]."; "published", "phrase. It is [BOX].".
        endings: of `ENDINGS`, one per phrase, for "published"; `TEST_ENDING` by default.

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    if style == "tags":
        return pointed_phrases(list(phrases))
    text, spans = "", []
    for index, (phrase, boxes) in enumerate(phrases):
        text += " " if text else ""
        ending = ABSENT if not boxes else (endings[index] if endings else TEST_ENDING)
        spans.append((len(text), len(text) + len(phrase)))
        text += f"{phrase}. {ending.replace(BOX_TOKEN, ' '.join([BOX_TOKEN] * max(1, boxes)))}"
    return text, spans


def word_report(sample: Sample, style: str) -> Sample:
    """A sample of report grounding with its question and answer as uMedGround words them.

    Args:
        style: of the answer, where the data set asks for none; see `answer`.
    """
    intent = sample.intent
    groups = [(phrase, list(found)) for phrase, found in groupby(sample.regions, key=lambda region: region.phrase)]
    phrases = [(phrase, sum(r.box_xyxy_px is not None for r in found)) for phrase, found in groups]
    number, endings = 0, None
    if intent.drawn:
        number, endings = random.randrange(len(QUESTIONS)), [random.choice(ENDINGS) for _ in phrases]
    published = intent.compat == "reference"
    text, _ = answer(phrases, "published" if published else intent.style or style, endings)
    asked = question(intent.subject, number, published, intent.drawn)
    return replace(sample, conversation=(("user", asked), ("assistant", text)))


@DIALECTS.register_module(name="grounded")
class GroundedDialect(Dialect):
    """Our own, and the default: [SEG] for masks, [BOX] for boxes, <p> and </p> around phrases, the wordings of all that
    is grounded."""

    name, style = "grounded", "tags"
    wordings, pool_of = POOLS, POOL_OF

    def read_pools(self, path: str | None) -> dict[str, list[str]]:
        return read_pools(path)

    def word(self, sample: Sample) -> Sample:
        if sample.intent is not None and sample.intent.kind == "report_grounding":
            return word_report(sample, self.style)
        return super().word(sample)


@DIALECTS.register_module(name="umedground")
class UMedGroundDialect(GroundedDialect):
    """Boxes only, by [BOX]: a mask is named by the box around it.

    Args:
        style: "tags" marks phrases by <p> and </p>; "published" says "phrase. It is [BOX]."
    """

    name, boxes = "umedground", INTERNVL
    seg_token = shows_regions = False

    def __init__(self, pools=None, compat=None, style: str = "published"):
        super().__init__(pools, compat)
        if style not in STYLES:
            raise TemplateError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
        self.style, self.marks_phrases = style, style == "tags"

    def to_dict(self) -> dict:
        return super().to_dict() | {"style": self.style}

    def point(self, phrase, tagged, marks, size, read) -> str:
        words = super().point(phrase, tagged, marks, size, read)
        return words if self.marks_phrases or not tagged else words.replace(phrase, f"{phrase}. It is", 1)

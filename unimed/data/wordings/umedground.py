"""Questions and answers of medical report grounding; the published strings a uMedGround checkpoint was trained with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from unimed.tokens import BOX_TOKEN, IMAGE_PLACEHOLDER, PHRASE_END, PHRASE_START

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
    """Text that names phrases and points at their boxes.

    Args:
        phrases: (phrase, number of boxes); 0 where the phrase has no place in the image.
        style: "tags", "<p> phrase </p> [BOX] [BOX]."; "published", "phrase. It is [BOX].".
        endings: of `ENDINGS`, one per phrase, for "published"; `TEST_ENDING` by default.

    Returns:
        the text, and per phrase its span in it.

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    text, spans = "", []
    for index, (phrase, boxes) in enumerate(phrases):
        text += " " if text else ""
        if style == "tags":
            start = len(text) + len(PHRASE_START) + 1
            shown = " ".join([BOX_TOKEN] * boxes) if boxes else ABSENT[:-1].lower().removeprefix("it ")
            text += f"{PHRASE_START} {phrase} {PHRASE_END} {shown}."
        else:
            start = len(text)
            ending = ABSENT if not boxes else (endings[index] if endings else TEST_ENDING)
            text += f"{phrase}. {ending.replace(BOX_TOKEN, ' '.join([BOX_TOKEN] * max(1, boxes)))}"
        spans.append((start, start + len(phrase)))
    return text, spans


def draw(count: int) -> tuple[int, list[str]]:
    """A wording and `count` endings for training, by Python's generator, which the trainer seeds sample by sample."""
    return random.randrange(len(QUESTIONS)), [random.choice(ENDINGS) for _ in range(count)]


def place_of(label: str, box_xyxy: Sequence[float], side: float) -> str:
    """Phrase for a labelled box as the ChestX-ray8 split of uMedGround words it: class, side of the patient, height.

    Args:
        box_xyxy: in a frame of `side` x `side`. Left in the picture is right in the patient.
    """
    if label.lower() == "cardiomegaly":
        return label
    x, y = (box_xyxy[0] + box_xyxy[2]) / 2 / side, (box_xyxy[1] + box_xyxy[3]) / 2 / side
    across = "right" if x < 0.45 else "left" if x > 0.55 else "middle"
    down = "top" if y <= 0.3 else "bottom" if y > 0.6 else ""
    if across == "middle" and down == "bottom":
        across = ""
    return f"{label} position: {' '.join(word for word in (across, down) if word)}"

"""Uni-Med: "[refer] Where does the liver lie?", "{<10><20><50><60>}".

A pool is a list of sentences with `{}` where the subject goes (a question, a phrase, or a box). The first entry of a
pool is the bare subject where the task has one; predictions use entry 1 (entry 0 of pools without a subject).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from unimed.models.dialects.base import Dialect
from unimed.models.dialects.boxes import PERCENT
from unimed.models.dialects.pools import load_pools
from unimed.registry import DIALECTS
from unimed.structures import Sample, Task, task_of
from unimed.tokens import IMAGE_PLACEHOLDER, SEG_TOKEN

#: Words the published code keeps of a question without an image; the tag of its task counts as one.
PUBLISHED_WORDS = 50
CHEST = "mimic_caption"
POOLS: dict[str, list[str]] = {
    "medqa_en": ["{}", "You are a physician. Give a brief reply to this question: {}"],
    "pubmedqa": ["{}", "You are a physician. Reply with yes, no or maybe: {}"],
    "qa": ["{}", "Give a brief reply to this question: {}"],
    "vqa": ["{}", "Look at the image and reply in a few words: {}"],
    "refer": [
        "{}",
        "Where does {} lie?",
        "Mark {} with a box.",
        "Give the box that holds {}.",
        "In which part of the image is {}?",
        "Point out {}.",
        "Which place in the image shows {}?",
    ],
    "identify": [
        "{}",
        "What does the box {} hold?",
        "Name what lies at {}.",
        "Which structure is inside {}?",
        "Tell what can be seen at {}.",
        "What is the thing at {} called?",
        "Look at {} and name it.",
    ],
    "caption": [
        "What does this image show?",
        "Write a caption for the image.",
        "Say in a few sentences what can be seen.",
        "Summarise the image.",
        "Report what you see here.",
        "Give an account of this medical image.",
        "Put the content of the image into words.",
        "Write down the findings of this image.",
        "Explain this image.",
        "What would a radiologist note here?",
    ],
    CHEST: [
        "Write the report of this chest radiograph.",
        "What are the findings of this chest radiograph?",
        "Read this chest radiograph and report it.",
        "Summarise heart, lungs and pleura on this radiograph.",
        "Dictate a report for this chest image.",
    ],
    "dermamnist": ["Which of these skin lesions does the dermatoscopic image show: {}?"],
    "organsmnist": ["Which of these organs does the abdominal CT slice show: {}?"],
    "cls": ["Which of these fits the image: {}?"],
}


#: Kind of a question -> its pool.
POOL_OF = {
    **{name: name for name in ("medqa_en", "pubmedqa", "caption", "dermamnist", "organsmnist")},
    "segmentation": "refer",
    "box": "refer",
    "region1": "identify",
    "question": "vqa",
    "chest_report": CHEST,
    "classes": "cls",
    "marked_caption": "caption",
}


@cache
def read_pools(path: str | None = None) -> dict[str, list[str]]:
    """Our pools, with those of a JSON file in their place; errors as `load_pools`."""
    return load_pools(path, POOLS)


@DIALECTS.register_module(name="uni_med")
class UniMedDialect(Dialect):
    """Boxes as four percentages in the text, and the task in brackets before the question.

    Args:
        seg_token, box_token: whether the model has these tokens beside its boxes as text; Uni-Med has none.
    """

    name = "uni_med"
    boxes = PERCENT
    marks_phrases = shows_regions = False
    wordings, pool_of = POOLS, POOL_OF

    def __init__(self, pools=None, compat=None, seg_token: bool = False, box_token: bool = False):
        super().__init__(pools, compat)
        self.seg_token, self.box_token = seg_token, box_token

    def to_dict(self) -> dict:
        return super().to_dict() | {"seg_token": self.seg_token, "box_token": self.box_token}

    def read_pools(self, path: str | None) -> dict[str, list[str]]:
        return read_pools(path)

    def fixed(self, sentences: Sequence[str]) -> int:
        return min(1, len(sentences) - 1) if sentences[0] == "{}" else 0

    def word(self, sample: Sample) -> Sample:
        worded, intent = super().word(sample), sample.intent
        if intent is None or worded is sample:
            return worded
        (_, asked), (_, answer) = worded.conversation
        if intent.compat == "reference" and sample.task is Task.QA:
            asked = " ".join(asked.split(" ")[: PUBLISHED_WORDS - 1])
        if intent.answer_kind == "segmentation" and SEG_TOKEN in answer:
            answer = SEG_TOKEN  # the place alone is the answer
        return replace(worded, conversation=(("user", asked), ("assistant", answer)))

    def tagged(self, task: Task, question: str, images: int) -> str:
        return f"[{task.short}] {question}"

    def asked(self, text: str, task: str | None, with_image: bool) -> tuple[str | None, str]:
        """A task in brackets before the text counts where none is given; "vqa", or "qa" without an image, otherwise.

        Raises:
            TaskNameError: an unknown task.
        """
        text = text.replace(IMAGE_PLACEHOLDER, "").strip()
        if text.startswith("[") and "]" in text:
            tag, rest = text[1:].split("]", 1)
            if task is None or tag == task:
                task, text = tag, rest.strip()
        named = task_of(task or ("vqa" if with_image else "qa"))
        return named.short, self.tagged(named, text, int(with_image))

"""How questions of Uni-Med's tasks are asked: our own words, or a file of a user's.

A pool is a list of sentences with `{}` where the subject goes (a question, a phrase, or a box). The first entry of a
pool is the bare subject where the task has one; predictions use entry 1 (entry 0 of pools without a subject).
"""

from __future__ import annotations

import random
from functools import cache

from unimed.data.wordings.pools import TemplateError, load_pools

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


@cache
def read_pools(path: str | None = None) -> dict[str, list[str]]:
    """Our pools, with those of a JSON file in their place; errors as `load_pools`."""
    return load_pools(path, POOLS)


def fill(pool: str, subject: str = "", training: bool = True, path: str | None = None, index: int | None = None) -> str:
    """A question of a pool about `subject`: drawn evenly in training, always the same otherwise.

    Raises:
        TemplateError: no such pool, or no such entry.
    """
    pools = read_pools(path)
    if pool not in pools:
        raise TemplateError(f"unknown pool {pool!r}; known are {', '.join(pools)}")
    sentences = pools[pool]
    if index is None:
        fixed = min(1, len(sentences) - 1) if sentences[0] == "{}" else 0
        index = random.randrange(len(sentences)) if training else fixed
    if not 0 <= index < len(sentences):
        raise TemplateError(f"pool {pool!r} has {len(sentences)} entries, there is no entry {index}")
    return sentences[index].replace("{}", subject)

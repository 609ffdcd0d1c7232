"""UniBiomed's kinds of questions and answers, in our own wordings or a file of a user's.

The first entry of a pool is the fixed one; training may draw any. "Please segment {}." and the forms of the answers are
those a published checkpoint knows; the other sentences say the same things in other words, so a checkpoint is best
trained on with the pool file it was trained with.
"""

from __future__ import annotations

from functools import cache

from unimed.models.dialects.base import Dialect
from unimed.models.dialects.boxes import INTERNVL
from unimed.models.dialects.pools import TemplateError, load_pools
from unimed.registry import DIALECTS
from unimed.tokens import PHRASE_END, PHRASE_START, SEG_TOKEN

POOLS: dict[str, list[str]] = {
    "segmentation": [
        "Please segment {}.",
        "Could you segment {} for me?",
        "What is {} here? Answer with a segmentation mask.",
        "Show me what {} is by a mask.",
        "I need the mask of {}.",
        "Find and segment {}.",
        "Where is {}? Answer with a mask.",
        "Outline {} with a segmentation mask.",
    ],
    "segmentation_answer": [
        f"It is {SEG_TOKEN}.",
        f"Sure, {SEG_TOKEN}.",
        f"Sure, it is {SEG_TOKEN}.",
        f"Here it is: {SEG_TOKEN}.",
        f"{SEG_TOKEN}.",
    ],
    "disease": [
        "Is any abnormality visible in this image? Please answer with interleaved segmentation masks.",
        "Does the image show a sign of disease? Point at it with interleaved segmentation masks.",
        "What is abnormal here? Answer with interleaved segmentation masks.",
        "Can you identify an abnormality in the image? Include segmentation masks in the answer.",
        "Look for a lesion or another abnormality and answer with interleaved masks.",
        "Name the abnormality of this image, with its segmentation mask in the answer.",
        "Is this image normal? If not, say what is seen and give interleaved segmentation masks.",
        "Which abnormality can be found? Answer with interleaved masks.",
    ],
    "disease_answer": [f"It is {SEG_TOKEN}. {{}}.", f"{SEG_TOKEN}. {{}}."],
    "report": [
        "Please describe the abnormality of this image and highlight the region with interleaved segmentation masks.",
        "Please report what is found here. Highlight it with interleaved segmentation masks.",
        "Give the diagnosis with a short report and mark the region by interleaved segmentation masks.",
        "Write the findings of this slice and point at them with interleaved segmentation masks.",
    ],
    "vqa": [
        "What abnormality is there in the {}? Please answer with interleaved segmentation masks.",
        "Is the {} normal? Answer with interleaved segmentation masks.",
        "Look at the {}: what is found? Include segmentation masks in the answer.",
        "Which finding does the {} show? Highlight it with a mask.",
        "Tell what is wrong with the {}, with interleaved segmentation masks.",
        "Can an abnormality be seen in the {}? Mark it in the answer.",
        "Name the abnormality of the {} and segment it.",
        "Describe the state of the {} in a few words, with interleaved masks.",
    ],
    "grounded_answer": [f"{PHRASE_START} {{}} {PHRASE_END} {SEG_TOKEN}"],
    "region": [
        "What is the <region> in the picture?",
        "Name the <region> of this image.",
        "What does the <region> show?",
        "Which structure is inside the <region>?",
        "Say what can be seen in the <region>.",
        "Identify the <region>, please.",
        "What is the <region> called?",
        "Which organ or lesion is the <region>?",
        "Tell me what the <region> is.",
    ],
    "region1": ["What is region1 in the picture?", "Name region1.", "What does region1 show?", "Identify region1."],
    "region_caption": [
        "What is the <region> in the picture? Describe its abnormality in detail.",
        "Describe the abnormality of the <region> in detail.",
        "Say in detail what the <region> shows.",
    ],
    "region1_caption": ["Describe region1 in detail.", "What does region1 show? Describe the abnormality in detail."],
    "caption": [
        "Please describe the region marked by <region> in detail.",
        "Give a detailed description of the <region>.",
        "What can be seen in the <region>? Go into detail.",
        "Describe everything of note in the <region>.",
        "Explain the <region> of this image at length.",
        "Write a detailed account of the <region>.",
        "Put the <region> into words, in detail.",
        "What does the <region> contain? Be thorough.",
    ],
}


#: Kind of a question or answer -> its pool.
POOL_OF = {
    "segmentation": "segmentation",
    "disease": "disease",
    "grounded_report": "report",
    "grounded_vqa": "vqa",
    "region": "region",
    "region1": "region1",
    "region_caption": "region_caption",
    "region1_caption": "region1_caption",
    "marked_caption": "caption",
    "answer:segmentation": "segmentation_answer",
    "answer:disease": "disease_answer",
    "answer:grounded": "grounded_answer",
}


@cache
def read_pools(path: str | None = None) -> dict[str, list[str]]:
    """Our pools, with those of a JSON file in their place.

    Raises:
        TemplateError: as `load_pools`, or an answer that does not hold exactly one [SEG] for its one mask.
    """
    pools = load_pools(path, POOLS)
    for name, pool in pools.items():
        for number, sentence in enumerate(pool if name.endswith("_answer") else ()):
            if sentence.count(SEG_TOKEN) != 1:
                raise TemplateError(f"{path}: pool {name!r}, entry {number} must hold {SEG_TOKEN} once: {sentence!r}")
    return pools


@DIALECTS.register_module(name="unibiomed")
class UniBiomedDialect(Dialect):
    """[SEG] for masks, <p> and </p> around phrases; boxes, which UniBiomed never points at, as its InternVL writes
    them."""

    name = "unibiomed"
    box_token, boxes = False, INTERNVL
    wordings, pool_of = POOLS, POOL_OF

    def read_pools(self, path: str | None) -> dict[str, list[str]]:
        return read_pools(path)

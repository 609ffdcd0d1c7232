"""Canonical samples: model-independent questions and answers until a dialect words them, and markers of answers."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from unimed.data.wordings.captions import draw_caption
from unimed.structures import Intent, Region, Sample, Task
from unimed.tokens import BOX_TOKEN, GROUNDING_TOKENS, PHRASE_END, PHRASE_START, SEG_TOKEN

#: Kind of a question -> its canonical words, `{}` where the subject goes.
QUESTIONS = {
    "segmentation": "Please segment {}.",
    "disease": "Is any abnormality visible in this image? Please answer with interleaved segmentation masks.",
    "grounded_report": (
        "Please describe the abnormality of this image and highlight the region with interleaved segmentation masks."
    ),
    "grounded_vqa": "What abnormality is there in the {}? Please answer with interleaved segmentation masks.",
    "region": "What is the <region> in the picture?",
    "region1": "What is region1 in the picture?",
    "region_caption": "What is the <region> in the picture? Describe its abnormality in detail.",
    "region1_caption": "Describe region1 in detail.",
    "marked_caption": "Please describe the region marked by <region> in detail.",
    "box": "Where does {} lie?",
    "question": "{}",
    "medqa_en": "{}",
    "pubmedqa": "{}",
    "caption": "What does this image show?",
    "chest_report": "Write the report of this chest radiograph.",
    "classes": "Which of these fits the image: {}?",
    "dermamnist": "Which of these skin lesions does the dermatoscopic image show: {}?",
    "organsmnist": "Which of these organs does the abdominal CT slice show: {}?",
    "report_grounding": "{} Please divide this report into phrases and output bounding boxes.",
}
#: Kind of an answer -> its canonical words.
ANSWERS = {
    "segmentation": f"It is {SEG_TOKEN}.",
    "disease": f"It is {SEG_TOKEN}. {{}}.",
    "grounded": f"{PHRASE_START} {{}} {PHRASE_END} {SEG_TOKEN}",
}
_MARKERS = re.compile("|".join(map(re.escape, GROUNDING_TOKENS)))
POINTERS = re.compile("|".join(map(re.escape, (SEG_TOKEN, BOX_TOKEN))))


def question(intent: Intent) -> str:
    """Canonical words of a question."""
    return QUESTIONS[intent.kind].replace("{}", intent.subject)


def answer(intent: Intent) -> str:
    """Canonical words of an answer."""
    return ANSWERS[intent.answer_kind].replace("{}", intent.answer_subject)


def pointed_phrases(phrases: list[tuple[str, int]]) -> tuple[str, list[tuple[int, int]]]:
    """Answer that names phrases and points at their boxes: "<p> phrase </p> [BOX] [BOX].", and each phrase's span.

    Args:
        phrases: (phrase, number of boxes); 0 where the phrase has no place in the image.
    """
    text, spans = "", []
    for phrase, boxes in phrases:
        text += " " if text else ""
        start = len(text) + len(PHRASE_START) + 1
        shown = " ".join([BOX_TOKEN] * boxes) if boxes else "is not visible"
        text += f"{PHRASE_START} {phrase} {PHRASE_END} {shown}."
        spans.append((start, start + len(phrase)))
    return text, spans


def with_conversation(sample: Sample) -> Sample:
    """A sample that has no words, with canonical ones: its caption, or its regions asked for by their phrases.

    Raises:
        ValueError: it has neither.
    """
    if sample.conversation:
        return sample
    captions = [text for text in sample.labels.get("captions") or () if text.strip()]
    if captions:
        intent, answer = Intent("caption"), draw_caption(captions, sample.labels.get("weights"))
    elif sample.regions:
        kind = "box" if sample.task is Task.BOX else "segmentation"
        intent = Intent(kind, ", ".join(dict.fromkeys(region.phrase for region in sample.regions)))
        answer = ". ".join(_named(region, kind) for region in sample.regions) + "."
    else:
        raise ValueError(f"sample {sample.sample_id}: it has no conversation, caption or region to train on")
    # The words of the answer name what they point at: no dialect may shorten them.
    intent = replace(intent, answer_kind="")
    return replace(sample, conversation=(("user", question(intent)), ("assistant", answer)), intent=intent)


def _named(region: Region, kind: str) -> str:
    there = region.presence is None or region.presence >= 0.5
    if not there or (region.mask is None and region.box_xyxy_px is None):
        return f"There is no {region.phrase}"
    return f"{PHRASE_START} {region.phrase} {PHRASE_END} {BOX_TOKEN if kind == 'box' else SEG_TOKEN}"


def without_markers(text: str) -> str:
    """Readable text: no [SEG], [BOX], <p>, </p>, <vp>, </vp>, single blanks, none before punctuation."""
    return re.sub(r" +([.,;:!?])", r"\1", " ".join(_MARKERS.sub(" ", text).split()))


def with_span(region: Region, text: str) -> Region:
    """The region with the place of its phrase in the text of an answer."""
    start = text.find(region.phrase) if region.phrase else -1
    return replace(region, phrase_span=(start, start + len(region.phrase)) if start >= 0 else None)


def answer_of(sample: Sample) -> str:
    """All answers of a sample as one text."""
    return "".join(text for role, text in sample.conversation if role == "assistant")


def pointed_regions(sample: Sample) -> list[Region]:
    """Regions that the [SEG] and [BOX] of a sample point at: not those given with the question, nor absent ones that
    the answer only denies."""
    if sample.written is not None:
        return list(sample.written.pointed)
    if sample.task is Task.REGION:
        return []
    if len(sample.regions) == len(POINTERS.findall(answer_of(sample))):
        return list(sample.regions)
    return [region for region in sample.regions if region.presence is None or region.presence >= 0.5]


def is_volume(sample: Sample) -> bool:
    """Whether the image of a sample is a stack of slices DxHxW."""
    return sample.task is Task.VOLUME and sample.images[0].ndim == 3


def box_of_mask(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """(x1, y1, x2, y2) around a mask [H, W], or around all slices of one [D, H, W]; None where it is empty."""
    mask = mask.any(0) if mask.ndim == 3 else mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)

"""Image-text pairs of the record format, and the collator of contrastive training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from unimed.data.readers.records import RecordDataset
from unimed.data.wordings.captions import draw_caption
from unimed.registry import COLLATORS, DATASETS
from unimed.structures import Sample

_MARKS = re.compile(r"</?p>|\[(SEG|BOX)\]")


def plain_text(answer: str) -> str:
    """A grounded answer without its marks: "12 <p> nuclei </p> [SEG]" becomes "12 nuclei"."""
    return re.sub(r"\s+([.,;])", r"\1", re.sub(r"\s+", " ", _MARKS.sub(" ", answer))).strip()


@DATASETS.register_module()
class ImageTextRecords:
    """One sample per image of the record format, with all its texts as captions.

    Args:
        path, split: as of `RecordDataset`.
        tasks: records of these tasks give captions.
        templates: further captions, with the fields of the record in braces, e.g. "{modality} of the {site}"; one with
            an empty field is left out.
        label: template of the class a sample is scored by, such as "{modality}".

    `labels` holds `captions` and `label`.
    """

    def __init__(
        self,
        path,
        split: str = "train",
        tasks: Sequence[str] = ("caption", "report"),
        templates: Sequence[str] = (),
        label: str = "{modality}",
    ):
        self.records = RecordDataset(path, split, tasks)
        self.templates, self.label = tuple(templates), label
        self.groups: dict[str, list[int]] = {}
        for number, record in enumerate(self.records.records):
            if "image" in record:
                self.groups.setdefault(record["image"], []).append(number)
        self.images = list(self.groups)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        numbers = self.groups[self.images[index]]
        records = [self.records.records[number] for number in numbers]
        captions = [plain_text(record["answer"]) for record in records]
        for template in (*self.templates, self.label):
            text = _filled(template, records[0])
            if text and template is not self.label:
                captions.append(text)
        sample = self.records[numbers[0]]
        labels = {"captions": tuple(dict.fromkeys(captions)), "label": _filled(self.label, records[0])}
        return replace(sample, sample_id=self.images[index], regions=(), labels=labels)


def _filled(template: str, record: dict) -> str:
    names = re.findall(r"\{(\w+)\}", template)
    values = {name: str(record.get(name) or "") for name in names}
    return template.format(**values) if all(values.values()) else ""


def captions_of(sample: Sample) -> tuple[str, ...]:
    """All captions of a sample: those in its labels, else the last answer of its conversation."""
    captions = tuple(sample.labels.get("captions") or ())
    return captions or tuple(plain_text(text) for role, text in sample.conversation[-1:])


@COLLATORS.register_module()
class ImageTextCollator:
    """Cropped images and one drawn caption of each sample.

    Args:
        processor: a `ClipProcessor`.
        scale: share of the image's area a random crop keeps; None takes the whole, as in evaluation.

    Gives `images` (uint8 crops, or normalised floats without `scale`), `input_ids`, `attention_mask`, `groups` (equal
    numbers for equal captions), `sample_ids`, and `cut`: names of samples whose caption was longer than the context.
    """

    def __init__(self, processor=None, scale: tuple[float, float] | None = (0.9, 1.0)):
        self.processor, self.scale = processor, scale

    def __call__(self, samples: list[Sample]) -> dict:
        if self.scale is None:
            images = torch.stack([self.processor.image(s.images[0]) for s in samples])
        else:
            images = torch.stack([self.processor.train_image(s.images[0], tuple(self.scale)) for s in samples])
        texts = [draw_caption(captions_of(s), s.labels.get("weights")) for s in samples]
        ids, cut = self.processor.texts(texts)
        return {
            "images": images,
            "input_ids": ids,
            "attention_mask": (ids != 0).long(),
            "groups": torch.tensor([_number(text) for text in texts]),
            "sample_ids": [sample.sample_id for sample in samples],
            "cut": [samples[number].sample_id for number in cut],
        }


def _number(text: str) -> int:
    """63 bits of the text without regard to case and spaces, the same on every rank."""
    words = " ".join(text.lower().split())
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1

"""Prompts that a model must be honest about: mirrored images, things that are not there, other wordings of a question.

Training draws them from any data set (`HardPromptDataset`); tests ask them beside the real questions
(`unimed.evaluation.honesty`). Wordings and nonsense of tests are never drawn in training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from unimed.data.canonical import box_of_mask
from unimed.data.readers.augment import other_side
from unimed.geometry import Geometry
from unimed.registry import DATASETS
from unimed.structures import Region, Sample, Task
from unimed.tokens import PHRASE_END, PHRASE_START, SEG_TOKEN

#: Side of a crop over the longer side of what it is made around, while training.
CROP_ZOOM = (1.5, 3.0)
#: Wordings of a question for one mask; `{}` is the phrase.
WORDINGS = (
    "Segment the {}.",
    "Please segment {}.",
    "Mark the {} with a mask.",
    "Where is the {}? Answer with a mask.",
    "Show me the {} as a mask.",
    "Delineate the {}.",
    "Can you outline the {} in this image?",
)
#: As above, asked in tests alone.
HELD_OUT_WORDINGS = (
    "Highlight the {} in the image.",
    "Please contour the {}.",
    "I need a mask of the {}.",
    "Which pixels belong to the {}?",
)
#: Things that no biomedical image shows, and words that mean nothing.
NONSENSE = (
    "bicycle", "teapot", "umbrella", "pine tree", "sailing boat", "guitar", "mailbox", "traffic light", "snowman",
    "left shoe", "right glove", "keyboard", "waffle", "dorflex vesicle", "the plimbic gland", "anterior quonk",
    "brillian cyst", "morvent lobe", "glistering node", "tranuvial duct",
)  # fmt: skip
#: As above, asked in tests alone.
HELD_OUT_NONSENSE = (
    "toaster", "violin", "railway station", "sandwich", "lighthouse", "coffee cup", "left ski", "parachute",
    "zorbic sac", "the vintle artery", "posterior frumple", "gandric mass",
)  # fmt: skip

#: Beginnings, middles and ends of invented words.
SYLLABLES = (
    ("bra", "cru", "dro", "fle", "gli", "kro", "lum", "mor", "nar", "pli", "quo", "sni", "tre", "vor", "wex", "yol"),
    ("b", "d", "ffl", "lg", "mb", "nd", "pt", "rv", "st", "t", "x", "z"),
    ("al", "ed", "el", "ion", "ith", "oma", "or", "osis", "um", "ule", "ver", "y"),
)
#: Chance of each word of a question to be replaced in a garbled one; the phrase stays.
GARBLED_WORDS = 0.35


def invented_word(draw=random) -> str:
    """A word that means nothing and stands in no list of tests."""
    while True:
        word = "".join(draw.choice(part) for part in SYLLABLES)
        if word not in " ".join((*HELD_OUT_NONSENSE, *HELD_OUT_WORDINGS)):
            return word


def garbled(wording: str, draw=random) -> str:
    """A wording some of whose words are invented ones; what holds `{}` stays."""
    return " ".join(
        word if "{}" in word or draw.random() >= GARBLED_WORDS else invented_word(draw) for word in wording.split()
    )


def single_target(sample: Sample) -> Region | None:
    """The one thing an image question asks for by its phrase, there or not; None for any other question."""
    if sample.task not in (Task.REFERRING, Task.ABSENT) or len(sample.regions) != 1 or len(sample.images) != 1:
        return None
    return sample.regions[0] if len(sample.conversation) <= 2 else None


def mirrored(sample: Sample) -> Sample:
    """The sample with image, masks and boxes mirrored left to right, and the words left and right exchanged.

    Raises:
        ValueError: a volume, or no image.
    """
    if not sample.images or any(not _is_flat(image) for image in sample.images):
        raise ValueError(f"sample {sample.sample_id}: only 2D images are mirrored")
    width = sample.images[0].shape[1]
    regions = []
    for region in sample.regions:
        box = region.box_xyxy_px
        regions.append(
            replace(
                region,
                phrase=other_side(region.phrase),
                mask=None if region.mask is None else np.ascontiguousarray(region.mask[:, ::-1]),
                box_xyxy_px=None if box is None else (width - box[2], box[1], width - box[0], box[3]),
                phrase_span=None,
            )
        )
    intent = sample.intent
    if intent is not None:
        sides = {name: other_side(getattr(intent, name)) for name in ("subject", "answer_subject")}
        intent = replace(intent, **sides)
    return replace(
        sample,
        images=tuple(np.ascontiguousarray(image[:, ::-1]) for image in sample.images),
        regions=tuple(regions),
        conversation=tuple((role, other_side(text)) for role, text in sample.conversation),
        labels={name: _other_side_of(value) for name, value in sample.labels.items()},
        intent=intent,
    )


def _other_side_of(value):
    """Labels, choices and captions in the words of the mirrored image, maps mirrored; everything else as it is."""
    if isinstance(value, str):
        return other_side(value)
    if isinstance(value, list | tuple):
        return type(value)(_other_side_of(item) for item in value)
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return np.ascontiguousarray(value[:, ::-1])
    return value


def asked_otherwise(sample: Sample, wording: str) -> Sample:
    """The sample with its question in another wording about the same phrase; the answer stays.

    Raises:
        ValueError: the sample does not ask for one thing.
    """
    target = single_target(sample)
    if target is None:
        raise ValueError(f"sample {sample.sample_id}: only questions for one thing have other wordings")
    answer = tuple(turn for turn in sample.conversation if turn[0] != "user")
    if not answer:
        raise ValueError(f"sample {sample.sample_id}: it has no answer whose question could be worded otherwise")
    question = wording.replace("{}", target.phrase)
    return replace(sample, conversation=(("user", question), *answer), intent=None)


def cropped(sample: Sample, zoom: float, draw=random) -> Sample:
    """A square around the one thing that is asked for, as a second look shows it.

    Args:
        zoom: side of the square over the longer side of the thing's box; its place is drawn, the thing stays inside.

    Raises:
        ValueError: the sample does not ask for one thing that is there with a mask.
    """
    target = single_target(sample)
    box = None if target is None or target.mask is None else box_of_mask(target.mask)
    if box is None:
        raise ValueError(f"sample {sample.sample_id}: there is no mask to crop around")
    side, window = zoom * max(box[2] - box[0], box[3] - box[1]), []
    for low, high, limit in ((box[0], box[2], target.mask.shape[1]), (box[1], box[3], target.mask.shape[0])):
        length = max(int(high - low), min(int(round(side)), limit))
        start = draw.uniform(max(0, high - length), min(low, limit - length))
        window.append(slice(int(round(start)), int(round(start)) + length))
    columns, rows = window
    region = replace(target, mask=np.ascontiguousarray(target.mask[rows, columns]), box_xyxy_px=None, phrase_span=None)
    image = np.ascontiguousarray(sample.images[0][rows, columns])
    return replace(sample, images=(image,), regions=(region,), geometry=Geometry.pixels())


def asked_for_nonsense(sample: Sample, phrase: str, wording: str) -> Sample:
    """The image of a sample with a question for what cannot be there; the answer denies it and points at nothing."""
    return replace(
        sample,
        sample_id=f"{sample.sample_id}-nonsense",
        conversation=(("user", wording.replace("{}", phrase)), ("assistant", f"There is no {phrase} in this image.")),
        regions=(Region(phrase, presence=0.0),),
        labels={**sample.labels, "task": Task.ABSENT.value, "label": None, "choices": None},
        intent=None,
        written=None,
    )


def pointed_at_nothing(sample: Sample) -> Sample:
    """The sample with an answer that points at the thing although it is not there, as an example for the presence head.

    Answers that deny have no [SEG], so without these the head would see present things alone. The words of such an
    answer are not learnt.

    Raises:
        ValueError: the sample does not ask for one thing, or the thing is there.
    """
    target = single_target(sample)
    if target is None or target.presence is None or target.presence >= 0.5:
        raise ValueError(f"sample {sample.sample_id}: only one thing that is not there can be pointed at in vain")
    asked = tuple(turn for turn in sample.conversation if turn[0] == "user")
    answer = f"{PHRASE_START} {target.phrase} {PHRASE_END} {SEG_TOKEN}."
    region = replace(target, mask=None, box_xyxy_px=None, presence=0.0, phrase_span=None)
    return replace(
        sample,
        conversation=(*asked, ("assistant", answer)),
        regions=(region,),
        written=None,
        teaches_words=False,
    )


def shows_one_image(sample: Sample) -> bool:
    """Whether a sample is a question about one 2D image."""
    return len(sample.images) == 1 and _is_flat(sample.images[0])


def _is_flat(image: np.ndarray) -> bool:
    return image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)


@DATASETS.register_module()
class HardPromptDataset:
    """Another data set with some of its samples mirrored, worded otherwise, or asked for what cannot be there.

    What is drawn depends on the engine's seed, the index and the epoch. Samples that do not fit (volumes, several
    images, questions for several things) stay as they are.

    Args:
        dataset: config of the data set.
        mirrored: fraction of samples mirrored, words included.
        reworded: fraction of questions for one thing asked in another of `wordings`.
        nonsense: fraction of questions for one thing replaced by one for what cannot be there.
        invented: fraction of those whose name is of invented words, never the same, and not one of `phrases`.
        pointed: fraction of questions for one thing that is not there, nonsense included, answered by pointing, which
            teaches the presence head and no words (`pointed_at_nothing`).
        garbled: fraction of wordings some of whose words are invented ones, so that the phrase has to be found.
        cropped: fraction of questions for one thing that is there asked about a crop around it, for second looks.
        wordings, phrases: sentences with `{}`, and names of what cannot be there.

    Raises:
        ValueError: a fraction outside [0, 1], or a wording without `{}`.
    """

    def __init__(
        self,
        dataset: Mapping,
        mirrored: float = 0.25,
        reworded: float = 0.25,
        nonsense: float = 0.1,
        cropped: float = 0.0,
        invented: float = 0.0,
        garbled: float = 0.0,
        pointed: float = 0.0,
        wordings: Sequence[str] = WORDINGS,
        phrases: Sequence[str] = NONSENSE,
    ):
        for name, value in (
            ("mirrored", mirrored), ("reworded", reworded), ("nonsense", nonsense), ("cropped", cropped),
            ("invented", invented), ("garbled", garbled), ("pointed", pointed),
        ):  # fmt: skip
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a fraction from 0 to 1, got {value}")
        if bad := [wording for wording in wordings if "{}" not in wording]:
            raise ValueError(f"wording {bad[0]!r} has no {{}} for the phrase")
        self.dataset = DATASETS.build(dataset)
        self.mirrored, self.reworded, self.nonsense, self.cropped = mirrored, reworded, nonsense, cropped
        self.invented, self.garbled, self.pointed = invented, garbled, pointed
        self.wordings, self.phrases = tuple(wordings), tuple(phrases)
        if hasattr(self.dataset, "length_of"):
            self.length_of = self.dataset.length_of

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Passed on to the data set."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        chances = (self.mirrored, self.reworded, self.nonsense, self.cropped)
        mirror, reword, replace_by, crop = (random.random() < chance for chance in chances)
        if not shows_one_image(sample):
            return sample
        if single_target(sample) is not None:
            wording = random.choice(self.wordings)
            if random.random() < self.garbled:
                wording = garbled(wording)
            if replace_by:
                sample = asked_for_nonsense(sample, self._nothing(), wording)
            elif reword and sample.conversation:
                sample = asked_otherwise(sample, wording)
            target = single_target(sample)
            shown = target.mask
            absent = target.presence is not None and target.presence < 0.5
            # Drawn only where it counts: what other settings draw stays the same.
            if self.pointed and absent and random.random() < self.pointed:
                sample = pointed_at_nothing(sample)
            if crop and shown is not None and shown.any():
                sample = cropped(sample, random.uniform(*CROP_ZOOM))
        return mirrored(sample) if mirror else sample

    def _nothing(self) -> str:
        """A name of what cannot be there."""
        if random.random() >= self.invented:
            return random.choice(self.phrases)
        return " ".join(invented_word() for _ in range(random.randint(1, 2)))

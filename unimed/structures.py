"""What flows through the package: samples and their regions, cases to run. Results are in `unimed.io.result`."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
from typing import Any

import numpy as np

from unimed.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Region:
    """A phrase and the place it points at.

    `mask` is bool, HxW or DxHxW in the grid of the source image. `box_xyxy_px` is in pixels of the original image,
    x2 and y2 exclusive. `presence` in [0, 1] is the probability that the thing is there at all; `confidence` in
    [0, 1] is about the place. `phrase_span` are character offsets (start, end) in the text of the owner. `label` is its
    number in label maps (by default its place among the regions, from 1), `prompt` what was asked where that is not the
    phrase, `p_value` how usual the mask looks for its target (K-S test of BiomedParse v1), `probability` its map
    [H, W], float32 in [0, 1], where a model was asked for it, `remark` what a reader must know.

    Raises:
        ValueError: mask not bool or not 2D/3D, box not finite or without area, probability outside [0, 1].
    """

    phrase: str
    mask: np.ndarray | None = None
    box_xyxy_px: tuple[float, float, float, float] | None = None
    presence: float | None = None
    confidence: float | None = None
    box_std_px: tuple[float, float, float, float] | None = None
    box_outer_xyxy_px: tuple[float, float, float, float] | None = None
    box_inner_xyxy_px: tuple[float, float, float, float] | None = None
    phrase_span: tuple[int, int] | None = None
    label: int | None = None
    prompt: str = ""
    p_value: float | None = None
    remark: str = ""
    probability: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.mask is not None and (self.mask.dtype != np.bool_ or self.mask.ndim not in (2, 3)):
            raise ValueError(
                f"region {self.phrase!r}: mask must be bool and 2D or 3D, got {self.mask.dtype} {self.mask.shape}"
            )
        if self.box_xyxy_px is not None:
            x1, y1, x2, y2 = self.box_xyxy_px
            if not np.isfinite(self.box_xyxy_px).all() or x2 <= x1 or y2 <= y1:
                raise ValueError(f"region {self.phrase!r}: box_xyxy_px {self.box_xyxy_px} has no area or is not finite")
        for name in ("presence", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"region {self.phrase!r}: {name} must lie in [0, 1], got {value}")


class Task(StrEnum):
    """What a question asks for; the word that records and logs use."""

    REFERRING = "referring"  # the mask of what is named
    ABSENT = "absent"  # as referring, and it is not there
    VOLUME = "volume"  # as referring, in the slices of a volume
    BOX = "box"  # the box of what is named
    REGION = "region"  # the name of a region that is given
    VQA = "vqa"  # an answer in words, about an image
    QA = "qa"  # an answer in words, without an image
    CLASSIFICATION = "classification"  # one of the classes that are named
    CAPTION = "caption"  # what an image shows
    REPORT = "report"  # findings, with what they point at
    REPORT_GROUNDING = "mrg"  # phrases of a report that is given, and their places

    @property
    def short(self) -> str:
        """Its name among the six tasks of Uni-Med: qa, vqa, refer, identify, caption, cls."""
        return _SHORT.get(self, self.value)


_SHORT = {
    **dict.fromkeys((Task.REFERRING, Task.ABSENT, Task.VOLUME, Task.BOX, Task.REPORT_GROUNDING), "refer"),
    Task.REGION: "identify",
    Task.CLASSIFICATION: "cls",
    Task.REPORT: "caption",
}
#: Other words for a task, as data sets and papers have them.
TASK_ALIASES = {
    "segmentation": Task.REFERRING,
    "refer": Task.BOX,
    "identify": Task.REGION,
    "cls": Task.CLASSIFICATION,
    "report_grounding": Task.REPORT_GROUNDING,
}


class TaskNameError(ValueError):
    """A word that names no task."""


def task_of(word: str, where: str = "") -> Task:
    """The task that a word names, itself or by one of `TASK_ALIASES`.

    Raises:
        TaskNameError: none; the message begins with `where` and lists the known words.
    """
    if word in TASK_ALIASES:
        return TASK_ALIASES[word]
    try:
        return Task(word)
    except ValueError:
        known = ", ".join((*Task, *TASK_ALIASES))
        raise TaskNameError(f"{where}task {word!r} is not known; choose one of: {known}") from None


@dataclass(frozen=True)
class Intent:
    """What a question asks, before a dialect words it.

    `kind` names the question (see `unimed.data.canonical`), `subject` goes into its wording; `answer_kind` and
    `answer_subject` do the same for the answer, where its words are free. `drawn`: a wording is drawn by the global
    `random`, which training seeds per sample; otherwise it is always the same. `pools` is a file with a user's own
    wordings, `number` the entry to take always, `compat` "reference" a published quirk of the data set.
    """

    kind: str
    subject: str = ""
    answer_kind: str = ""
    answer_subject: str = ""
    drawn: bool = False
    pools: str | None = None
    number: int | None = None
    compat: str | None = None
    style: str | None = None


@dataclass(frozen=True, eq=False)
class Written:
    """What a dialect made of a sample: its name, the regions that the [SEG] and [BOX] of the answer point at, in order,
    and those that are shown with the question as image tokens."""

    dialect: str
    pointed: tuple[Region, ...] = ()
    given: tuple[Region, ...] = ()


@dataclass(frozen=True, eq=False)
class LabelRegion(Region):
    """A region of a label map that several share: where no mask is given it is made when asked for, and not kept.

    A volume with twenty targets takes the memory of one map instead of twenty.
    """

    label_map: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.label is None or self.label < 1 or self.label_map is None:
            raise ValueError(f"region {self.phrase!r}: a region of a label map needs the map and a label from 1 on")

    def _mask(self) -> np.ndarray:
        own = self.__dict__.get("own_mask")
        return np.asarray(self.label_map == self.label) if own is None else own

    def _keep(self, mask: np.ndarray | None) -> None:
        self.__dict__["own_mask"] = mask

    mask = property(_mask, _keep)


@dataclass(frozen=True, eq=False)
class Sample:
    """One training or test record, whatever its files looked like.

    `images` are arrays HxW, HxWx3 or DxHxW. `conversation` is a tuple of (role, text) pairs; an answer points at the
    k-th of its `regions` by its k-th [SEG] or [BOX], and marks a phrase by <p> and </p>. Where the question has no
    words of its own, `intent` says what is asked and `conversation` holds canonical words. A dialect turns both into
    the words of a checkpoint (`written`). Where `teaches_words` is False the heads learn from what
    the answer points at, and its words are not learnt. `label_origin` says who made the labels (an expert, a threshold,
    a template). `patient_id` decides splits and never appears in logs.
    """

    images: tuple[np.ndarray, ...]
    geometry: Geometry
    sample_id: str
    modality: str = ""
    conversation: tuple[tuple[str, str], ...] = ()
    regions: tuple[Region, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    patient_id: str = field(default="", repr=False)
    source: str = ""
    license: str = ""
    label_origin: str = ""
    intent: Intent | None = None
    written: Written | None = None
    teaches_words: bool = True

    @property
    def task(self) -> Task:
        """By `labels["task"]`; where that is missing, what images and regions allow to ask.

        Raises:
            TaskNameError: a word that names no task; the sample is named.
        """
        word = str(self.labels.get("task") or "")
        if word not in ("", "parse"):  # BiomedParse: find what is named, in an image or a volume
            return task_of(word, f"sample {self.sample_id}: ")
        if self.regions and all(region.box_xyxy_px is not None and region.mask is None for region in self.regions):
            return Task.BOX
        if self.regions:
            stack = self.images[0].ndim == 3 and self.images[0].shape[-1] != 3
            return Task.VOLUME if stack else Task.REFERRING
        if not self.images:
            return Task.QA
        return Task.CAPTION if self.labels.get("captions") else Task.VQA


@dataclass(frozen=True)
class Case:
    """One thing to do. `name` is unique within a run and decides whether the case is finished already."""

    name: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


def as_list(items: Iterable) -> list:
    """The items of a list, tuple, stacked array [N, ...], data set, lazy sequence or generator, each its own object.

    What is made while it is asked for may be made in the same place again; so such items are copied, and none of them
    can turn into another later.
    """
    if isinstance(items, list | tuple):
        return list(items)
    if hasattr(items, "__len__") and hasattr(items, "__getitem__") and not isinstance(items, Mapping):
        # By number: a data set of torch need not say where it ends.
        source: Any = items
        count = len(source)
        items = (source[index] for index in range(count))
    return [item.copy() if isinstance(item, np.ndarray) or hasattr(item, "tobytes") else item for item in items]


def identity(item) -> Hashable:
    """What tells an image from others: its path, or its content; the object itself where it is neither."""
    if isinstance(item, str | PurePath):
        return str(item)
    if isinstance(item, np.ndarray) and item.dtype != object:
        return item.shape, item.dtype.str, hashlib.sha1(np.ascontiguousarray(item).data).hexdigest()
    if hasattr(item, "tobytes") and hasattr(item, "mode") and getattr(item, "palette", None) is None:
        return item.size, item.mode, hashlib.sha1(item.tobytes()).hexdigest()
    return id(item)

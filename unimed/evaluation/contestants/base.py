"""What every contestant keeps to: what it is shown of a sample, what it answers, and what it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unimed.data import canonical
from unimed.io.result import Prediction
from unimed.registry import CONTESTANTS, look_up, registered
from unimed.structures import Region, Sample, Task

#: Tasks whose phrases are the question; of all others they are (a part of) the answer.
NAMED_TASKS = (Task.REFERRING, Task.ABSENT, Task.VOLUME, Task.BOX)


class ContestantError(ValueError):
    """A contestant that cannot be opened or asked; the message says which, why and what to do."""


@dataclass(frozen=True)
class Settings:
    """How a contestant is asked; each looks at what concerns it.

    Args:
        device, dtype, batch_size, max_new_tokens: of models that run here.
        dialect: registered dialect that boxes in a text are read by; "" leaves it to the model.
        url: of an endpoint. key_variable: environment variable with its key, which is written nowhere.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 4
    max_new_tokens: int = 512
    dialect: str = ""
    url: str = ""
    key_variable: str = "OPENAI_API_KEY"


class Contestant(ABC):
    """One that answers the questions of a benchmark.

    Args:
        reference: what stands behind the colon of `KIND:REFERENCE`: a folder, a file, the name of a model.
        settings: how it is asked.

    `frame_checked`: whether it reads boxes from text, so that a drawn test image has to be shown to it first.
    """

    frame_checked = False

    def __init__(self, reference: str = "", settings: Settings | None = None):
        self.reference, self.settings = reference, settings or Settings()

    def identity(self) -> Mapping[str, Any]:
        """What makes its answers what they are, for the manifest: plain values, digests of contents, no secrets."""
        return {}

    def learn(self, train: Sequence[Sample]) -> None:  # noqa: B027 - most do not
        """Look at the training part; called before the first question where the benchmark has one."""

    @abstractmethod
    def answer(self, samples: Sequence[Sample]) -> list[Prediction]:
        """One prediction per sample, which are as `asked` leaves them: without their answers."""

    def answer_case(self, sample: Sample) -> Prediction:
        """The answer to one sample; where a batch failed, its samples are asked one by one."""
        return self.answer([sample])[0]


def contestant(word: str, settings: Settings | None = None) -> Contestant:
    """The contestant of `KIND:REFERENCE`; a word without a known kind is a model of ours, `model:WORD`.

    Raises:
        ContestantError, and what opening it raises.
    """
    kind, colon, reference = word.partition(":")
    if Path(word).exists() or kind not in registered(CONTESTANTS):
        kind, reference = "model", word
    return look_up(kind, CONTESTANTS)(reference, settings)


def asked(sample: Sample) -> Sample:
    """What a contestant may see of a sample: images, question, given regions, and the phrases that are asked for.

    Answers, masks, boxes, presence, labels and patients stay behind. `labels` keep `task`, `choices` and `site`.
    """
    task = sample.task
    try:
        worded = canonical.with_conversation(sample)
    except ValueError:  # nothing to say about it, but it can be asked
        worded = replace(sample, conversation=(("user", ""),))
    question = next((text for role, text in worded.conversation if role == "user"), "")
    regions: tuple[Region, ...] = ()
    if task is Task.REGION:
        regions = tuple(Region(f"region{n}", r.mask, r.box_xyxy_px) for n, r in enumerate(sample.regions, start=1))
    elif task in NAMED_TASKS:
        phrases = dict.fromkeys(region.phrase for region in sample.regions)
        regions = tuple(Region(phrase) for phrase in phrases)
    # The intent may name the answer.
    intent = worded.intent and replace(worded.intent, answer_kind="", answer_subject="", drawn=False)
    kept = {name: sample.labels[name] for name in ("choices", "site") if sample.labels.get(name)}
    return Sample(
        images=sample.images, geometry=sample.geometry, sample_id=sample.sample_id, modality=sample.modality,
        conversation=(("user", question), ("assistant", "")), regions=regions, labels={"task": str(task), **kept},
        intent=intent,
    )  # fmt: skip


def is_stack(sample: Sample) -> bool:
    """Whether its image is a volume DxHxW."""
    return bool(sample.images) and sample.images[0].ndim == 3 and sample.images[0].shape[-1] != 3


def grid_of(sample: Sample) -> tuple[int, ...]:
    """Shape of a mask of its image: HxW or DxHxW."""
    shape = sample.images[0].shape
    return tuple(shape) if is_stack(sample) else tuple(shape[:2])

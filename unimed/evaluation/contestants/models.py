"""Models of ours as contestants, and how each family is asked a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.data.canonical import is_volume
from unimed.data.collate.grounded import volume_to_uint8
from unimed.evaluation.contestants.base import Contestant, ContestantError, is_stack
from unimed.identity import content_digest
from unimed.io.result import Prediction
from unimed.io.volumes import Volume
from unimed.io.windows import known_site
from unimed.registry import CONTESTANTS
from unimed.structures import Sample, Task


@CONTESTANTS.register_module("model")
class OwnModel(Contestant):
    """`model:FOLDER`: whatever `unimed.load` opens.

    Grounded models are asked in the words of their dialect, BiomedParse for the phrases, contrastive ones for choices.
    """

    def __init__(self, reference="", settings=None):
        super().__init__(reference, settings)
        from unimed.models.auto import load

        self.model = load(reference, device=self.settings.device, dtype=self.settings.dtype)
        # Boxes that a model writes in words go through its dialect, and so may stand in a wrong frame.
        dialect = getattr(getattr(self.model, "processor", None), "dialect", None)
        self.dialect = dialect
        self.frame_checked = dialect is not None and (dialect.boxes is not None or dialect.box_token)

    def identity(self) -> Mapping:
        known = Path(self.reference).exists()
        return {
            "content": content_digest(self.reference) if known else self.reference,
            "class": type(self.model).__name__,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
        }

    def answer(self, samples: Sequence[Sample]) -> list[Prediction]:
        how = {"batch_size": self.settings.batch_size}
        if hasattr(self.model, "zero_shot"):
            return [answer_by_choice(self.model, sample) for sample in samples]
        if hasattr(self.model, "segment_slices"):
            return answer_parsing(self.model, samples, **how)
        return answer_grounded(self.model, samples, max_new_tokens=self.settings.max_new_tokens, **how)


def answer_grounded(
    model, samples: Sequence[Sample], *, batch_size: int = 4, max_new_tokens: int = 512, blank: bool = False
) -> list[Prediction]:
    """What a grounded model answers to the question of each sample; it never sees the answer.

    Args:
        blank: black images instead of the real ones, for the language-only baseline.
    """
    samples = [model.processor.write(sample) for sample in samples]
    connector = model.connector
    routes = connector is not None and connector.needs_task
    options, flat, images, kept, predictions = dict(max_new_tokens=max_new_tokens), [], [], {}, {}
    for index, sample in enumerate(samples):
        # The same array is the same image, which is encoded once.
        shown = [kept.setdefault(id(image), np.zeros_like(image) if blank else image) for image in sample.images]
        if is_volume(sample):
            way = model.routed_as(routed_name(sample.task, connector.tasks)) if routes else nullcontext()
            frames = list(np.zeros(shown[0].shape, np.uint8) if blank else volume_to_uint8(sample))
            with way:
                predictions[index] = model.predict_frames(frames, sample.conversation[0][1], **options)
        else:
            flat.append(index)
            images.append(shown if len(shown) > 1 else shown[0] if shown else None)
    given = [samples[i].written.given for i in flat]
    texts = [samples[i].conversation[0][1] for i in flat]
    tasks = [routed_name(samples[i].task, connector.tasks) for i in flat] if routes else None
    answers = model.predict_batch(images, texts, given, batch_size=batch_size, task=tasks, **options)
    predictions |= dict(zip(flat, answers, strict=True))
    return [predictions[index] for index in range(len(samples))]


def routed_name(task: Task, tasks: Sequence[str]) -> str:
    """The connector's name of a task: its own, or Uni-Med's for it."""
    return task.value if task.value in tasks else task.short


def answer_parsing(model, samples: Sequence[Sample], *, batch_size: int = 4, **options) -> list[Prediction]:
    """Masks and existence for the phrases of each sample; the model never sees where they are, or whether.

    A sample whose image is a volume DxHxW is asked as users ask, and its masks are volumes too.

    Raises:
        ContestantError: a sample that names no phrase.
    """
    for sample in samples:
        if not sample.regions:
            raise ContestantError(f"sample {sample.sample_id}: BiomedParse is asked for phrases, and it names none")
    texts = ["[SEP]".join(region.phrase for region in sample.regions) for sample in samples]
    answers: list = [None] * len(samples)
    flat = [number for number, sample in enumerate(samples) if not is_stack(sample)]
    made = model.predict_batch(
        [samples[number].images[0] for number in flat], [texts[number] for number in flat], as_channels=True,
        batch_size=batch_size, **options,
    )  # fmt: skip
    for number, one in zip(flat, made, strict=True):
        answers[number] = one
    for number, sample in enumerate(samples):
        if answers[number] is None:
            volume, modality = Volume(sample.images[0], sample.geometry), sample.modality
            site = known_site(str(sample.labels.get("site") or ""), modality, model.config.ct_windows)
            answers[number] = model.predict_batch(
                [volume], texts[number : number + 1], modality=modality, site=site, slice_batch=batch_size,
                batch_size=batch_size, **options,
            )[0]  # fmt: skip
    return answers


def answer_by_choice(model, sample: Sample) -> Prediction:
    """The label that fits best of those a sample gives to choose from, as an answer in words.

    Raises:
        ContestantError: it gives none.
    """
    choices = list(sample.labels.get("choices") or ())
    if len(choices) < 2 or len(sample.images) != 1:
        raise ContestantError(f"sample {sample.sample_id}: a contrastive model needs one image and choices to compare")
    found = model.predict(sample.images[0], choices)
    return replace(found, text=found.classes.label)

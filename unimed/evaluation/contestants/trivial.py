"""Contestants that look at no image: what any model has to beat, and what a sound ranking puts last.

`no:` says "no" and points at nothing. `everything:` says yes to all and marks the whole image. `prior:` repeats the
training data: the commonest answer to the same question, the usual mask and box of a phrase.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unimed.evaluation.baselines import AnswerPrior, usual_box, usual_mask
from unimed.evaluation.contestants.base import Contestant, ContestantError, grid_of
from unimed.evaluation.rows import answer_of, question_of
from unimed.io.result import Prediction
from unimed.metrics.text import normal_form
from unimed.registry import CONTESTANTS
from unimed.structures import Region, Sample

#: Training masks of a phrase that the usual one is chosen from; comparing all with all grows with the square.
_MOST = 40


class _Blind(Contestant):
    def answer(self, samples: Sequence[Sample]) -> list[Prediction]:
        return [self.answer_case(sample) for sample in samples]


@CONTESTANTS.register_module("no")
class AlwaysNo(_Blind):
    """ "no", and nothing is there."""

    def answer_case(self, sample: Sample) -> Prediction:
        return Prediction("no", tuple(Region(region.phrase, presence=0.0) for region in sample.regions))


@CONTESTANTS.register_module("everything")
class PaintsEverything(_Blind):
    """ "yes", and every phrase fills the image."""

    def answer_case(self, sample: Sample) -> Prediction:
        if not sample.images:
            return Prediction("yes")
        shape = grid_of(sample)
        box = (0.0, 0.0, float(shape[-1]), float(shape[-2]))
        regions = [
            Region(region.phrase, mask=np.ones(shape, bool), box_xyxy_px=box, presence=1.0) for region in sample.regions
        ]
        return Prediction("yes", tuple(regions))


@CONTESTANTS.register_module("prior")
class TrainingPrior(_Blind):
    """What is usual in the training part.

    Raises:
        ContestantError: on asking, where there was no training part to learn from.
    """

    def __init__(self, reference="", settings=None):
        super().__init__(reference, settings)
        self.answers: AnswerPrior | None = None
        self.masks: dict[tuple[str, int], np.ndarray] = {}
        self.boxes: dict[str, tuple[list, list]] = {}
        self.learned = 0

    def identity(self):
        return {"training_samples": self.learned}

    def learn(self, train: Sequence[Sample]) -> None:
        questions, answers = [], []
        masks: dict[tuple[str, int], list] = defaultdict(list)
        boxes: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
        for sample in train:
            self.learned += 1
            if answer_of(sample):
                questions.append(question_of(sample))
                answers.append(answer_of(sample))
            for region in sample.regions:
                name = normal_form(region.phrase)
                if region.mask is not None and region.mask.any() and len(masks[name, region.mask.ndim]) < _MOST:
                    masks[name, region.mask.ndim].append(region.mask)
                if region.box_xyxy_px is not None:
                    boxes[name][0].append(region.box_xyxy_px)
                    boxes[name][1].append(grid_of(sample)[-2:])
        self.answers = AnswerPrior.fit(questions, answers) if questions else None
        self.masks = {name: usual_mask(found) for name, found in masks.items()}
        self.boxes = dict(boxes)

    def answer_case(self, sample: Sample) -> Prediction:
        if not self.learned:
            raise ContestantError("the training prior needs the training part of the benchmark, which is not there")
        regions = []
        for region in sample.regions:
            name, shape = normal_form(region.phrase), grid_of(sample)
            mask, box = self.masks.get((name, len(shape))), None
            if mask is not None:
                mask = usual_mask([mask], shape)
            if name in self.boxes:
                box = tuple(float(v) for v in usual_box(*self.boxes[name], shape[-2:]))
            if mask is not None or box is not None:
                regions.append(Region(region.phrase, mask=mask, box_xyxy_px=box, presence=1.0))
            else:
                regions.append(Region(region.phrase, presence=0.0))
        predicted = self.answers.answer(question_of(sample)) if self.answers is not None else ""
        return Prediction(predicted, tuple(regions))

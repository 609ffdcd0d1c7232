"""Answers of models that write boxes in their text: how they are asked, and how boxes are read, by a dialect."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from unimed.evaluation.contestants.base import Contestant, ContestantError, is_stack
from unimed.io.result import Prediction
from unimed.models.dialects import build_dialect
from unimed.structures import Region, Sample

Size = tuple[int, int]


class TextContestant(Contestant):
    """One that is sent an image and words, and answers in words.

    A kind gives `say(sample, question) -> text`, and `read_size(size_hw)` where boxes are in pixels of an image that it
    resized.
    """

    frame_checked = True
    #: Dialect where the settings name none.
    usual_dialect = "qwen3_vl"
    #: Whether answers may bring regions of their own, so that the dialect need not read any.
    brings_regions = False

    def __init__(self, reference="", settings=None):
        super().__init__(reference, settings)
        self.dialect = build_dialect(self.settings.dialect or self.usual_dialect)
        if self.dialect.boxes is None and not self.brings_regions:
            raise ContestantError(
                f"dialect {self.dialect.name!r} writes no boxes in text; choose one that does with --dialect"
            )

    def identity(self):
        return {"dialect": self.dialect.name}

    def read_size(self, size_hw: Size) -> Size:
        """(height, width) of the image as the model sees it."""
        return size_hw

    @abstractmethod
    def say(self, sample: Sample, question: str) -> str:
        """The answer in words."""

    def answer(self, samples: Sequence[Sample]) -> list[Prediction]:
        return [self.answer_case(sample) for sample in samples]

    def answer_case(self, sample: Sample) -> Prediction:
        if is_stack(sample):
            raise ContestantError(f"sample {sample.sample_id}: it is a volume, and this contestant is shown images")
        question = self.dialect.write(sample, self.read_size).conversation[0][1]
        return prediction_of(self.say(sample, question), self.dialect, sample, self.read_size)


def prediction_of(
    text: str, dialect, sample: Sample, read_size: Callable[[Size], Size] = lambda size: size
) -> Prediction:
    """An answer in words, with the boxes that are written in it in pixels of the image; `markup` is it as it was.

    A box that names no phrase is of the one phrase that was asked for, if there is one.
    """
    if not sample.images:
        return Prediction(text.strip(), markup=text)
    height, width = sample.images[0].shape[:2]
    alone = sample.regions[0].phrase if len(sample.regions) == 1 else ""
    regions, kept, place = [], [], 0
    for (start, stop), phrase, boxes in dialect.read_boxes(text, read_size((height, width))):
        kept += [text[place:start], phrase]
        place = stop
        for x1, y1, x2, y2 in boxes:
            box = (x1 * width, y1 * height, x2 * width, y2 * height)
            regions.append(Region(phrase or alone, box_xyxy_px=box))
    kept.append(text[place:])
    return Prediction(" ".join("".join(kept).split()), tuple(regions), markup=text)

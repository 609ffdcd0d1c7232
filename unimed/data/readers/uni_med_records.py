"""Records of the project's own format as the tasks of Uni-Med, boxes written as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from unimed.data.readers.records import RecordDataset, RecordError
from unimed.data.wordings.uni_med import fill
from unimed.registry import DATASETS
from unimed.structures import Sample
from unimed.tokens import GROUNDING_TOKENS

_MARKERS = re.compile("|".join(re.escape(token) for token in GROUNDING_TOKENS))
SOURCES = {"vqa": "vqa", "refer": "box", "identify": "box", "caption": "caption", "cls": "classification"}


@DATASETS.register_module()
class UniMedRecords:
    """Samples of `RecordDataset` under Uni-Med's tasks: "box" records serve refer and identify.

    Args:
        path, split: as of `RecordDataset`.
        tasks: which of vqa, refer, identify, caption, cls; one after another.
        limit: at most so many samples per task.

    Raises:
        RecordError: an unknown task.
    """

    def __init__(self, path, split: str = "train", tasks: Sequence[str] = tuple(SOURCES), limit: int | None = None):
        unknown = sorted(set(tasks) - set(SOURCES))
        if unknown:
            raise RecordError(f"unknown task {', '.join(unknown)}; choose of: {', '.join(SOURCES)}")
        self.parts = [(task, RecordDataset(path, split, [SOURCES[task]], limit)) for task in tasks]
        self.training = split == "train"
        self.places = [(number, i) for number, (_, part) in enumerate(self.parts) for i in range(len(part))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        number, place = self.places[index]
        task, part = self.parts[number]
        sample = part[place]
        answer = _MARKERS.sub("", sample.conversation[1][1])
        question = sample.conversation[0][1]
        if task in ("refer", "identify"):
            region = next(region for region in sample.regions if region.box_xyxy_px is not None)
            height, width = sample.images[0].shape[:2]
            box = box_text(region.box_xyxy_px, width, height)
            subject, answer = (region.phrase, box) if task == "refer" else (box, region.phrase)
            question = fill(task, subject, self.training)
        return replace(
            sample,
            sample_id=f"{sample.sample_id}-{task}",
            conversation=(("user", question), ("assistant", " ".join(answer.split()))),
            labels={**sample.labels, "task": task},
        )


def box_text(box_xyxy_px: Sequence[float], width: float, height: float) -> str:
    """Box in pixels -> {<x1><y1><x2><y2>} on a scale of 0 to 100 of the image, cut towards zero, never clamped."""
    x1, y1, x2, y2 = box_xyxy_px
    values = (x1 / width, y1 / height, x2 / width, y2 / height)
    return "{" + "".join(f"<{int(value * 100)}>" for value in values) + "}"

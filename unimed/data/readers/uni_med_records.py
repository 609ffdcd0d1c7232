"""Records of the project's own format under the tasks of Uni-Med: a box record also asks what lies in its box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unimed.data import canonical
from unimed.data.readers.records import RecordDataset, RecordError
from unimed.registry import DATASETS
from unimed.structures import Intent, Sample
from unimed.tokens import BOX_TOKEN

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
        asked, answer = sample.conversation[0][1], canonical.without_markers(sample.conversation[1][1])
        regions, intent = sample.regions, None
        if task in ("refer", "identify"):
            region = next(region for region in sample.regions if region.box_xyxy_px is not None)
            refers, regions = task == "refer", (replace(region, mask=None),)
            kind, subject = ("box", region.phrase) if refers else ("region1", "region1")
            intent = Intent(kind, subject, drawn=self.training)
            asked, answer = canonical.question(intent), BOX_TOKEN if refers else region.phrase
        return replace(
            sample,
            sample_id=f"{sample.sample_id}-{task}",
            conversation=(("user", asked), ("assistant", answer)),
            regions=regions,
            labels={**sample.labels, "task": task},
            intent=intent,
        )

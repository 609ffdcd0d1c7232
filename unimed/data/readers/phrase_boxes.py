"""One question per phrase of a grounded image: where it lies."""

from __future__ import annotations

from dataclasses import replace

from unimed.data import canonical
from unimed.data.readers.umedground import MedicalGroundingDataset
from unimed.registry import DATASETS
from unimed.structures import Intent, Sample
from unimed.tokens import BOX_TOKEN


@DATASETS.register_module()
class PhraseGroundingDataset:
    """The samples of `MedicalGroundingDataset` taken apart: a phrase is asked for, and answered by all its boxes.

    Args:
        by_class: ask for the class of a box alone, where its phrase also says the place ("Mass in the left lung").
        limit: keep only the first so many phrases.
        options: as of `MedicalGroundingDataset`.
    """

    def __init__(self, path, images, split: str = "train", by_class: bool = False, limit: int | None = None, **options):
        self.by_class, self.split = by_class, split
        self.whole = MedicalGroundingDataset(path, images, split=split, ask="phrase", **options)
        places = [(number, phrase) for number, record in enumerate(self.whole.records) for phrase in self._of(record)]
        self.places = places[:limit]

    def _of(self, record) -> list[str]:
        return list(record.classes) if self.by_class else list(dict.fromkeys(phrase for phrase, _ in record.phrases))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        number, phrase = self.places[index]
        sample = self.whole[number]
        if self.by_class:
            mine = [r for r in sample.regions if r.phrase.lower().startswith(phrase.lower())]
        else:
            mine = [region for region in sample.regions if region.phrase == phrase]
        regions = tuple(replace(region, phrase=phrase, phrase_span=None) for region in mine)
        intent = Intent("box", phrase, drawn=self.split == "train")
        answer = (
            " ".join([BOX_TOKEN] * sum(r.box_xyxy_px is not None for r in regions)) or "It has no place in the image."
        )
        turns = (("user", canonical.question(intent)), ("assistant", answer))
        return replace(
            sample, sample_id=f"{sample.sample_id}-{index}", conversation=turns, regions=regions, intent=intent,
            labels={**sample.labels, "task": "box"},
        )  # fmt: skip

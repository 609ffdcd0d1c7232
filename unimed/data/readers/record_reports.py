"""Reports of the record format (`data/formats.md`) as report grounding: masks become boxes, denied things have none."""

from __future__ import annotations

from collections import defaultdict

from unimed.data import canonical
from unimed.data.readers.records import RecordDataset
from unimed.registry import DATASETS, renames
from unimed.structures import Intent, Region, Sample


@DATASETS.register_module()
@renames(most_boxes="max_boxes")
class RecordReports:
    """One sample per image that has a report: report in, phrases and boxes out.

    Phrases are those the report points at, those of "box" questions on the same image with at most `max_boxes` boxes,
    and those an "absent" question denies. The report gets a sentence for what it does not mention itself.

    Args:
        path: folder of a data set in the record format.
        split: "train", "val", "test".
        max_boxes: phrases with more boxes are left out.
        style: of answers, "tags" or "published"; None leaves it to the dialect of the model.
    """

    def __init__(self, path, split: str = "train", max_boxes: int = 3, style: str | None = None):
        self.records = RecordDataset(path, split, tasks=("report", "box", "absent"))
        self.split, self.max_boxes, self.style = split, max_boxes, style
        by_image: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, record in enumerate(self.records.records):
            if "image" in record:
                by_image[record["image"]][record["task"]].append(number)
        self.items = [tasks for tasks in by_image.values() if tasks["report"]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        tasks = self.items[index]
        report = self.records[tasks["report"][0]]
        text = canonical.without_markers(report.conversation[1][1])
        phrases: dict[str, list] = {
            r.phrase: [] if r.mask is None else [canonical.box_of_mask(r.mask)] for r in report.regions
        }
        for number in tasks["box"]:
            boxes: dict[str, list] = defaultdict(list)
            for region in self.records[number].regions:
                boxes[region.phrase].append(region.box_xyxy_px)
            for phrase, found in boxes.items():
                if len(found) <= self.max_boxes and phrase not in phrases:
                    phrases[phrase] = found
                    text += f" The {phrase} is to be seen."
        for number in tasks["absent"]:
            for region in self.records[number].regions:
                if region.presence == 0 and region.phrase not in phrases:
                    phrases[region.phrase] = []
                    text += f" There is no {region.phrase}."
        answer, spans = canonical.pointed_phrases([(p, len(b)) for p, b in phrases.items()])
        intent = Intent("report_grounding", text, drawn=self.split == "train", style=self.style)
        regions = []
        for (phrase, boxes), span in zip(phrases.items(), spans, strict=True):
            regions += [Region(phrase, box_xyxy_px=box, presence=1.0, phrase_span=span) for box in boxes]
            if not boxes:
                regions.append(Region(phrase, presence=0.0, phrase_span=span))
        return Sample(
            images=report.images,
            geometry=report.geometry,
            sample_id=report.sample_id,
            modality=report.modality,
            conversation=(("user", canonical.question(intent)), ("assistant", answer)),
            intent=intent,
            regions=tuple(regions),
            labels={"task": "mrg", "kind": "report", "classes": [], "text": text},
            patient_id=report.patient_id,
            source=report.source,
            license=report.license,
            label_origin=report.label_origin,
        )

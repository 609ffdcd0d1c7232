"""PadChest-GR: sentences of reports about chest radiographs, each with no, one or many boxes."""

from __future__ import annotations

import csv
from pathlib import Path

from unimed.data import canonical
from unimed.data.readers.uni_med import FieldError, field, inside
from unimed.files import read_json
from unimed.io.errors import ImageError, ReadError
from unimed.io.images import load as load_image
from unimed.registry import DATASETS
from unimed.structures import Intent, Region, Sample
from unimed.tokens import BOX_TOKEN

BOXES = ("all", "zero", "one", "many")


@DATASETS.register_module()
class PadChestGrDataset:
    """A sample per finding: its sentence is asked for, and answered by its boxes.

    Read are `<root>/grounded_reports_20240819.json` (ImageID, StudyID, findings with sentence_en or sentence_es and
    boxes [x1, y1, x2, y2] as fractions), `<root>/master_table.csv` (ImageID, PatientID, split) and
    `<root>/PadChest_GR/<ImageID>`.

    Args:
        split: "train", "validation" or "test" of the table.
        boxes: "all" findings, or only those with "zero", "one" or "many" boxes. A finding without a box has no place in
            the image: pointing at something is an error there.
        language: "en" or "es".

    Raises:
        FileNotFoundError: a file is missing. FieldError: a field is missing, or boxes that are no fractions.
    """

    def __init__(self, root, split: str = "train", boxes: str = "all", language: str = "en", limit: int | None = None):
        if boxes not in BOXES or language not in ("en", "es"):
            raise ValueError(
                f"boxes must be one of {', '.join(BOXES)} and language en or es, got {boxes!r} {language!r}"
            )
        self.root, self.split, self.boxes, self.language = Path(root), split, boxes, language
        self.records = list(self._read())[:limit]

    def _read(self):
        table, path = self.root / "master_table.csv", self.root / "grounded_reports_20240819.json"
        for file in (table, path):
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file")
        with open(table, newline="", encoding="utf-8-sig") as stream:
            rows = {row.get("ImageID", ""): row for row in csv.DictReader(stream)}
        for number, record in enumerate(read_json(path, error=FieldError)):
            where = f"{path}: record {number}"
            image = field(record, "ImageID", str, where)
            row = rows.get(image)
            if row is None:
                raise FieldError(f"{where}: image {image} is not in {table.name}")
            if field(row, "split", str, f"{table}: {image}") != self.split:
                continue
            for place, finding in enumerate(field(record, "findings", list, where)):
                yield from self._finding(finding, place, image, row, where)

    def _finding(self, finding: dict, place: int, image: str, row: dict, where: str):
        sentence = field(finding, f"sentence_{self.language}", str, where).strip()
        boxes = finding.get("boxes") or []
        kind = "zero" if not boxes else "one" if len(boxes) == 1 else "many"
        if not sentence or self.boxes not in ("all", kind):
            return
        for box in boxes:
            if len(box) != 4 or not all(-0.01 <= v <= 1.01 for v in box) or box[2] <= box[0] or box[3] <= box[1]:
                raise FieldError(f"{where}: finding {place}: {box} is no box in fractions of the image")
        yield {
            "id": f"{Path(image).stem}-{place}", "image": image, "sentence": sentence.rstrip("."), "boxes": boxes,
            "patient": str(row.get("PatientID") or ""), "kind": kind,
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        path = inside(self.root, f"PadChest_GR/{record['image']}", f"{self.root}: {record['id']}")
        try:
            image = load_image(path)
        except (FileNotFoundError, ReadError, ImageError) as error:
            raise FieldError(f"{self.root}: {record['id']}: image {path}: {error}") from error
        height, width = image.pixels.shape[:2]
        phrase = record["sentence"]
        regions = [
            Region(phrase, presence=1.0, box_xyxy_px=(
                max(0.0, x1 * width), max(0.0, y1 * height), min(width, x2 * width), min(height, y2 * height)))
            for x1, y1, x2, y2 in record["boxes"]
        ]  # fmt: skip
        intent = Intent("box", phrase, drawn=self.split == "train")
        answer = " ".join([BOX_TOKEN] * len(regions)) or "It has no place in the image."
        return Sample(
            images=(image.pixels,), geometry=image.geometry, sample_id=record["id"], modality="X-ray",
            conversation=(("user", canonical.question(intent)), ("assistant", answer)), intent=intent,
            regions=tuple(regions) or (Region(phrase, presence=0.0),),
            labels={"task": "box", "boxes": record["kind"]}, patient_id=record["patient"], source="padchest_gr",
            label_origin="radiologists",
        )  # fmt: skip

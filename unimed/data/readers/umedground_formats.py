"""Readers of phrase-and-box data sets: MRG-MS-CXR, MRG-ChestX-ray8, MS-CXR, ChestX-ray8, grounded VQA, sample records.

Every reader yields a `GroundingRecord`, or the error of a record that cannot be read.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from unimed.data.readers.umedground_records import GroundingDataError, GroundingRecord, from_xywh, patient_of
from unimed.files import read_json, read_json_lines, resolve_inside
from unimed.pickles import refuse_dangerous

#: Side of the frame in which the MRG files give boxes, and of ChestX-ray8's images.
MRG_SIDE, CHESTXRAY_SIDE = 640, 1024
#: Text fields of MRG files in the order in which one is looked for, and what kind of question each makes.
TEXT_KEYS = {
    "all_reports": "report",
    "all_report_answer": "vqa",
    "all_report_class": "class",
    "Answer_all": "vqa",
    "class_all": "class",
    "report_gpt": "report",
}
MS_CXR_CLASSES = (
    "Cardiomegaly",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
)


def read_mrg(path: Path, text_key: str | None = None) -> Iterator[GroundingRecord | GroundingDataError]:
    """The `.pth` files of uMedGround: a dictionary of parallel lists, read without running anything in it.

    Boxes are x, y, width, height in a frame of 640 x 640; one per item, or a list beside a list of phrases. A text
    field may hold plain strings or lists of one string.

    Args:
        text_key: which field is the text; the first known one by default.

    Raises:
        GroundingDataError: not such a file, lists of different lengths, or no such text field.
    """
    import torch

    refuse_dangerous(path, GroundingDataError)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike
        raise GroundingDataError(f"{path}: cannot be read as plain lists ({str(error).splitlines()[0]})") from error
    needed = ("image_paths", "bboxes", "phrases")
    if not isinstance(content, dict) or any(name not in content for name in needed):
        raise GroundingDataError(f"{path}: an MRG file is a dictionary with {', '.join(needed)} and a text field")
    key = text_key or next((name for name in TEXT_KEYS if name in content), None)
    if key not in content:
        raise GroundingDataError(f"{path}: no text field {key or ', '.join(TEXT_KEYS)}; it has {', '.join(content)}")
    lengths = {name: len(content[name]) for name in (*needed, key)}
    if len(set(lengths.values())) > 1:
        raise GroundingDataError(f"{path}: its lists have different lengths: {lengths}")
    kind = TEXT_KEYS.get(key, "report")
    for number, (image, boxes, phrases, text) in enumerate(
        zip(*(content[name] for name in (*needed, key)), strict=True)
    ):
        name = f"{number}:{image}"
        try:
            text = " ".join(text) if isinstance(text, (list, tuple)) else text
            if not str(text).strip():
                raise GroundingDataError(f"{path}: record {name}: its {key} is empty")
            yield GroundingRecord(
                record_id=name,
                image=str(image),
                text=str(text),
                phrases=_paired(phrases, boxes, f"{path}: record {name}"),
                frame_hw=(MRG_SIDE, MRG_SIDE),
                kind=kind,
                patient_id=patient_of(str(image)),
                classes=[str(content["class_all"][number])] if content.get("class_all") else [],
            )
        except (TypeError, ValueError) as error:
            yield _as_error(error, f"{path}: record {name}")


def _paired(phrases, boxes, where: str) -> list[tuple[str, list]]:
    """Phrases with their boxes; equal phrases that follow each other are one with several boxes."""
    if isinstance(phrases, str):
        several = bool(boxes) and isinstance(boxes[0], (list, tuple))
        return [(phrases, [from_xywh(box) for box in (boxes if several else [boxes] if boxes else [])])]
    if len(phrases) != len(boxes):
        raise GroundingDataError(f"{where}: {len(phrases)} phrases for {len(boxes)} boxes")
    found: list[tuple[str, list]] = []
    for phrase, box in zip(phrases, boxes, strict=True):
        several = box and isinstance(box[0], (list, tuple))
        mine = [from_xywh(one) for one in (box if several else [box] if box else [])]
        if found and found[-1][0] == phrase:
            found[-1][1].extend(mine)
        else:
            found.append((phrase, mine))
    return found


def read_ms_cxr(path: Path, reports: Path | None = None) -> Iterator[GroundingRecord | GroundingDataError]:
    """MS-CXR's own COCO file; boxes x, y, width, height in pixels of MIMIC-CXR-JPG's images.

    Args:
        reports: the `files` folder of MIMIC-CXR with `p10/p10000032/s50414267.txt`; without it the phrases themselves
            are asked for, because MS-CXR holds no reports.

    Raises:
        GroundingDataError: not such a file.
    """
    content = _json(path)
    if not isinstance(content, dict) or any(name not in content for name in ("images", "annotations", "categories")):
        raise GroundingDataError(f"{path}: MS-CXR is a COCO file with images, annotations and categories")
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    known = {image["id"] for image in content["images"]}
    for lost in sorted(set(by_image) - known, key=str):
        yield GroundingDataError(f"{path}: record {lost}: annotations of an image that is not in `images`")
    for image in content["images"]:
        where = f"{path}: record {image.get('id')}"
        try:
            image_path = image.get("path") or image["file_name"]
            phrases: dict[str, list] = {}
            for annotation in by_image[image["id"]]:
                phrases.setdefault(annotation["label_text"], []).append(from_xywh(annotation["bbox"]))
            text, kind = ". ".join(phrases) + ".", "phrase"
            if reports is not None:
                text, kind = _report_of(image_path, Path(reports), where), "report"
            yield GroundingRecord(
                record_id=str(image["id"]),
                image=image_path,
                text=text,
                phrases=list(phrases.items()),
                frame_hw=(int(image["height"]), int(image["width"])),
                kind=kind,
                patient_id=patient_of(image_path),
                classes=sorted({names[a["category_id"]] for a in by_image[image["id"]]}),
            )
        except (KeyError, TypeError, ValueError) as error:
            yield _as_error(error, where)


def _report_of(image_path: str, reports: Path, where: str) -> str:
    parts = Path(image_path).parts
    study = next((index for index, part in enumerate(parts) if part.startswith("s") and part[1:].isdigit()), None)
    if study is None:
        raise GroundingDataError(f"{where}: no study (s followed by digits) in {image_path}")
    name = "/".join([*(part for part in parts[:study] if part not in ("files", "/")), f"{parts[study]}.txt"])
    file = resolve_inside(reports, name, where=where, error=GroundingDataError)
    if not file.is_file():
        raise GroundingDataError(f"{where}: report {file} is missing; give MIMIC-CXR's `files` folder as `reports`")
    return " ".join(file.read_text(encoding="utf-8").split())


def read_box_list(path: Path, reports: Path | None = None) -> Iterator[GroundingRecord | GroundingDataError]:
    """ChestX-ray8's `BBox_List_2017.csv`: image, finding, x, y, width, height in its images of 1024 x 1024.

    Phrases are worded as in MRG-ChestX-ray8 (`grounding_text.place_of`).

    Args:
        reports: JSON {image: report}; without it the phrases themselves are asked for.

    Raises:
        GroundingDataError: not such a file.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    if not rows or rows[0][:2] != ["Image Index", "Finding Label"]:
        raise GroundingDataError(f"{path}: the first line must be that of BBox_List_2017.csv (Image Index, ...)")
    texts = {} if reports is None else _json(reports)
    by_image: dict[str, list] = defaultdict(list)
    for number, row in enumerate(rows[1:], start=2):
        try:
            box = from_xywh(row[2:6])
            by_image[row[0]].append((row[1], box))
        except ValueError as error:
            yield GroundingDataError(f"{path}: record {number}: {row[:6]} holds no box of four numbers ({error})")
    for image, found in by_image.items():
        phrases: dict[str, list] = {}
        for label, box in found:
            phrases.setdefault(place_of(label, box, CHESTXRAY_SIDE), []).append(box)
        if reports is not None and image not in texts:
            yield GroundingDataError(f"{path}: record {image}: no report in {reports}")
            continue
        yield GroundingRecord(
            record_id=image,
            image=image,
            text=texts.get(image, ". ".join(phrases) + "."),
            phrases=list(phrases.items()),
            frame_hw=(CHESTXRAY_SIDE, CHESTXRAY_SIDE),
            kind="phrase" if reports is None else "report",
            patient_id=patient_of(image),
            classes=sorted({label for label, _ in found}),
        )


def read_questions(path: Path) -> Iterator[GroundingRecord | GroundingDataError]:
    """Grounded questions and class lists as JSON lines, the format for data of one's own.

    A line holds id, image, `frame_hw` [height, width] of what the boxes speak of, `phrases` (each with "phrase" and
    "boxes_xyxy_px") and one of `report`, `question` with `answer`, or `classes`; `patient_id` where it is known.

    Raises:
        FileNotFoundError: no such file.
    """
    for number, row in read_json_lines(path, error=GroundingDataError):
        where = f"{path}: record {number}"
        try:
            if "report" in row:
                text, kind = row["report"], "report"
            elif "question" in row:
                text, kind = f"{row['question']} {row.get('answer', '')}".strip(), "vqa"
            elif "classes" in row:
                text, kind = ", ".join(row["classes"]) + ".", "class"
            else:
                raise GroundingDataError(f"{where}: one of report, question or classes is needed")
            yield GroundingRecord(
                record_id=str(row["id"]),
                image=row["image"],
                text=text,
                phrases=[
                    (entry["phrase"], [tuple(map(float, box)) for box in entry.get("boxes_xyxy_px") or ()])
                    for entry in row["phrases"]
                ],
                frame_hw=tuple(int(side) for side in row["frame_hw"]),
                kind=kind,
                patient_id=str(row.get("patient_id") or patient_of(row["image"])),
                classes=list(row.get("classes") or ()),
            )
        except (KeyError, TypeError, ValueError) as error:
            yield _as_error(error, where)


def _as_error(error: Exception, where: str) -> GroundingDataError:
    if isinstance(error, GroundingDataError):
        return error
    reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
    return GroundingDataError(f"{where}: {reason}")


def _json(path: Path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return read_json(path, error=GroundingDataError)


#: Format -> reader of (path, reports).
FORMATS = {
    "mrg": read_mrg,
    "ms_cxr": read_ms_cxr,
    "chestxray8": read_box_list,
    "questions": read_questions,
}


def place_of(label: str, box_xyxy: Sequence[float], side: float) -> str:
    """Phrase for a labelled box as the ChestX-ray8 split of uMedGround words it: class, side of the patient, height.

    Args:
        box_xyxy: in a frame of `side` x `side`. Left in the picture is right in the patient.
    """
    if label.lower() == "cardiomegaly":
        return label
    x, y = (box_xyxy[0] + box_xyxy[2]) / 2 / side, (box_xyxy[1] + box_xyxy[3]) / 2 / side
    across = "right" if x < 0.45 else "left" if x > 0.55 else "middle"
    down = "top" if y <= 0.3 else "bottom" if y > 0.6 else ""
    if across == "middle" and down == "bottom":
        across = ""
    return f"{label} position: {' '.join(word for word in (across, down) if word)}"

"""Published sets of questions about images in the layouts they are downloaded in.

VQA-RAD, PMC-VQA, OmniMedVQA, MedXpertQA (multimodal) and the health subjects of MMMU. Questions with choices name them
by letters; `labels["choices"]` holds them, and the answer of a sample is the text of the right one.
"""

from __future__ import annotations

import ast
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from unimed.data.readers.uni_med import FieldError, UniMedDataset, clean, field, inside
from unimed.files import read_json, read_json_lines
from unimed.io.images import load as load_image
from unimed.registry import DATASETS
from unimed.structures import Sample

LETTERS = "ABCDEFGHIJ"
#: What is said under the choices.
ASKED = "Answer with the letter of the right choice."


def with_choices(question: str, choices: Sequence[str]) -> str:
    """A question with its choices, a line each: "A. liver"."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, ASKED])


class _Choices(UniMedDataset):
    """Records are dicts with `id`, `question`, `choices`, `answer`, `images`, and `patient` (what is resampled)."""

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        question, choices = clean(record["question"]), list(record.get("choices") or ())
        asked = self.ask("question", with_choices(question, choices) if choices else question)
        labels = {"choices": choices, "answer_type": "CLOSED"} if choices else {"answer_type": record["kind"]}
        return self.sample(
            record["id"], "vqa", asked, clean(record["answer"]), record["images"], patient=record["patient"], **labels
        )


@DATASETS.register_module()
class VqaRadDataset(_Choices):
    """VQA-RAD: `<root>/VQA_RAD Dataset Public.json` and `<root>/VQA_RAD Image Folder/`.

    Test are the questions whose `phrase_type` begins with "test". The published training questions are about the same
    images; here a training question about an image of the test questions is left out (`overlapping` counts them), so
    that no image is in both.

    Args:
        shared_images: "drop", or "keep" for the published training part.
    """

    benchmark = "vqa_rad"

    def __init__(self, root, shared_images: str = "drop", **options):
        if shared_images not in ("drop", "keep"):
            raise ValueError(f"shared_images must be 'drop' or 'keep', got {shared_images!r}")
        self.root, self.shared_images, self.overlapping = Path(root), shared_images, 0
        super().__init__(**options)

    def read(self) -> Iterator[dict]:
        path = self.root / "VQA_RAD Dataset Public.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        records = read_json(path, error=FieldError)
        kinds = [str(field(r, "phrase_type", str, f"{path}: record {n}")) for n, r in enumerate(records)]
        tested = {r.get("image_name") for r, kind in zip(records, kinds, strict=True) if kind.startswith("test")}
        for number, (record, kind) in enumerate(zip(records, kinds, strict=True)):
            where = f"{path}: record {number}"
            name = field(record, "image_name", str, where)
            if kind.startswith("test") != (self.split == "test"):
                continue
            if self.split != "test" and name in tested and self.shared_images == "drop":
                self.overlapping += 1
                continue
            closed = str(record.get("answer_type", "")).strip().upper() == "CLOSED"
            yield {
                "id": str(field(record, "qid", (str, int), where)),
                "question": field(record, "question", str, where),
                "answer": str(field(record, "answer", (str, int, float), where)),
                "kind": "CLOSED" if closed else "OPEN",
                "images": [inside(self.root, f"VQA_RAD Image Folder/{name}", where)],
                "patient": name,
            }


@DATASETS.register_module()
class PmcVqaDataset(_Choices):
    """PMC-VQA: `<root>/<split>_clean.csv` (or `<split>.csv`) with Figure_path, Question, Answer or Answer_label and
    "Choice A" to "Choice D", and `<root>/figures/` (or `images/`). Figures of one article count as one patient."""

    benchmark = "pmc_vqa"

    def __init__(self, root, **options):
        self.root = Path(root)
        super().__init__(**options)

    def read(self) -> Iterator[dict]:
        names = [f"{self.split}_clean.csv", f"{self.split}.csv", f"{self.split}_2.csv"]
        path = next((self.root / name for name in names if (self.root / name).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{self.root / names[0]}: no such file")
        folder = next((name for name in ("figures", "images") if (self.root / name).is_dir()), "figures")
        with open(path, newline="", encoding="utf-8-sig") as stream:
            for number, row in enumerate(csv.DictReader(stream)):
                where = f"{path}: record {number}"
                choices = [_without_letter(field(row, f"Choice {letter}", str, where)) for letter in "ABCD"]
                right = str(row.get("Answer_label") or field(row, "Answer", str, where)).strip()
                name = field(row, "Figure_path", str, where)
                yield {
                    "id": str(row.get("index") or number),
                    "question": field(row, "Question", str, where),
                    "choices": choices,
                    "answer": _right(right, choices, where),
                    "images": [inside(self.root, f"{folder}/{name}", where)],
                    "patient": re.split(r"[_.]", name)[0],
                }


@DATASETS.register_module()
class OmniMedVqaDataset(_Choices):
    """OmniMedVQA: `<root>/QA_information/Open-access/*.json`, lists of question_id, question, gt_answer, option_A to
    option_D, image_path (below `root`), modality_type. It has one part, which is for testing."""

    benchmark = "omnimedvqa"

    def __init__(self, root, access: str = "Open-access", **options):
        self.root, self.access = Path(root), access
        super().__init__(**options)

    def read(self) -> Iterator[dict]:
        folder = inside(self.root, f"QA_information/{self.access}", str(self.root))
        files = sorted(folder.glob("*.json"))
        if not files:
            raise FileNotFoundError(f"{folder}: holds no *.json")
        for path in files:
            for number, record in enumerate(read_json(path, error=FieldError)):
                where = f"{path}: record {number}"
                choices = [str(record[f"option_{letter}"]) for letter in "ABCD" if record.get(f"option_{letter}")]
                name = field(record, "image_path", str, where)
                yield {
                    "id": str(field(record, "question_id", (str, int), where)),
                    "question": field(record, "question", str, where),
                    "choices": choices,
                    "answer": _right(str(field(record, "gt_answer", (str, int), where)), choices, where),
                    "images": [inside(self.root, name, where)],
                    "patient": name,
                    "modality": str(record.get("modality_type") or record.get("modality") or ""),
                }

    def __getitem__(self, index: int) -> Sample:
        from dataclasses import replace

        return replace(super().__getitem__(index), modality=self.records[index]["modality"])


@DATASETS.register_module()
class MedXpertQaDataset(_Choices):
    """MedXpertQA MM: `<root>/MM/<split>.jsonl` with id, question, options {letter: text}, label, images (names below
    `<root>/images/`). Its "dev" part holds five questions."""

    benchmark = "medxpertqa_mm"

    def __init__(self, root, **options):
        self.root = Path(root)
        super().__init__(**options)

    def read(self) -> Iterator[dict]:
        path = self.root / "MM" / f"{self.split}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        for number, record in read_json_lines(path, error=FieldError):
            where = f"{path}: record {number}"
            options = field(record, "options", dict, where)
            # The choices are repeated at the end of the question as it is published.
            question = field(record, "question", str, where).split("\nAnswer Choices:")[0]
            name = field(record, "id", str, where)
            yield {
                "id": name,
                "question": question,
                "choices": [str(options[letter]) for letter in sorted(options)],
                "answer": str(options[field(record, "label", str, where)]),
                "images": [inside(self.root, f"images/{one}", where) for one in field(record, "images", list, where)],
                "patient": name,
            }


@DATASETS.register_module()
class MmmuMedDataset(_Choices):
    """The health subjects of MMMU: `<root>/<subject>/<split>-*.parquet` with question ("<image 1>" marks an image),
    options (a list as text), answer, image_1 to image_7. Answers of the test part are not public: "validation" is used.

    Raises:
        ImportError: pyarrow is missing.
    """

    benchmark = "mmmu_med"
    subjects = (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    )

    def __init__(self, root, split: str = "validation", **options):
        self.root = Path(root)
        super().__init__(split=split, **options)

    def read(self) -> Iterator[dict]:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError("MMMU comes as parquet, which needs pyarrow: pip install 'unimed[train]'") from error
        for subject in self.subjects:
            files = sorted((self.root / subject).glob(f"{self.split}-*.parquet"))
            if not files:
                raise FileNotFoundError(f"{self.root / subject}: holds no {self.split}-*.parquet")
            for path in files:
                for number, row in enumerate(parquet.read_table(path).to_pylist()):
                    yield self._record(row, f"{path}: record {number}")

    def _record(self, row: dict, where: str) -> dict:
        try:
            choices = [str(one) for one in ast.literal_eval(field(row, "options", str, where) or "[]")]
        except (ValueError, SyntaxError) as error:
            raise FieldError(f"{where}: field 'options' is no list: {row['options']!r:.60}") from error
        answer, name = field(row, "answer", str, where), field(row, "id", str, where)
        images = [row[key] for key in (f"image_{n}" for n in range(1, 8)) if row.get(key)]
        return {
            "id": name,
            "question": re.sub(r"<image (\d)>", r"(image \1)", field(row, "question", str, where)),
            "choices": choices,
            "answer": _right(answer, choices, where) if choices else answer,
            "kind": "OPEN",
            "images": [
                load_image(io.BytesIO(one["bytes"]).getvalue(), name=f"{where}: image").pixels for one in images
            ],
            "patient": name,
        }


def _without_letter(text: str) -> str:
    """ "A: liver" as PMC-VQA writes a choice -> "liver"."""
    return re.sub(r"^\s*[A-D]\s*[:.)]\s*", "", text).strip()


def _right(answer: str, choices: Sequence[str], where: str) -> str:
    """The text of the right choice, given as a letter or as its text.

    Raises:
        FieldError: it is none of them.
    """
    answer = answer.strip()
    if len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return choices[LETTERS.index(answer.upper())]
    plain = _without_letter(answer).strip().lower()
    for choice in choices:
        if choice.strip().lower() in (answer.lower(), plain):
            return choice
    raise FieldError(f"{where}: the answer {answer!r:.60} is none of the choices {[c[:30] for c in choices]}")

"""The twelve data sets of Uni-Med (arXiv 2409.17508) in the layouts they are downloaded in.

medqa, pubmedqa (qa) - slake, path-vqa (vqa) - slake, sa-med2d (refer and identify) - mimic-cxr, medpix single and
multi (caption) - dermamnist, organsmnist (cls). Every sample's `labels` hold `task` and `benchmark`.
"""

from __future__ import annotations

import csv
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.data import canonical
from unimed.data.readers.umedground_records import patient_of
from unimed.files import read_json, read_json_lines, read_lines, resolve_inside
from unimed.geometry import Geometry
from unimed.io.errors import ImageError, ReadError
from unimed.io.images import load as load_image
from unimed.pickles import refuse_dangerous
from unimed.registry import DATASETS
from unimed.structures import Intent, Region, Sample
from unimed.tokens import BOX_TOKEN

#: Words the published code keeps of every question and answer, reports included.
PUBLISHED_WORDS = 50
BOX_TASKS = ("refer", "identify")
DERMA = (
    "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
    "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
)  # fmt: skip
ORGANS = (
    "bladder", "left femur", "right femur", "heart", "left kidney", "right kidney", "liver", "left lung", "right lung",
    "pancreas", "spleen",
)  # fmt: skip
MEDMNIST = {"dermamnist": DERMA, "organsmnist": ORGANS}


class FieldError(ValueError):
    """A file of a data set that misses a field or holds something else; names file, record and field."""


def clean(text: str, words: int | None = None) -> str:
    """Runs of blanks become one, edges go; with `words`, only the first so many words stay."""
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return text if words is None else " ".join(text.split(" ")[:words])


def field(record, name: str, kind, where: str):
    """A field of a record.

    Raises:
        FieldError: it is missing or of another kind.
    """
    if not isinstance(record, dict) or name not in record:
        raise FieldError(f"{where}: field {name!r} is missing; there are {sorted(record)[:12] if record else []}")
    value = record[name]
    if not isinstance(value, kind):
        raise FieldError(f"{where}: field {name!r} is {type(value).__name__}, not what is expected: {value!r:.60}")
    return value


def _json(path: Path, kind):
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    value = read_json(path, error=FieldError)
    if not isinstance(value, kind):
        raise FieldError(f"{path}: holds {type(value).__name__}, expected {kind.__name__}")
    return value


class _Plain(pickle.Unpickler):
    """Lists, dicts, strings and numbers only: any class or function a file names is refused, so nothing runs."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"names {module}.{name}, only plain lists, dicts, strings and numbers are read")


def read_plain_pickle(path: Path) -> list:
    """The list in a pickle of plain containers, as Path-VQA ships it.

    Raises:
        FieldError: it names a class, is damaged, or holds no list.
    """
    refuse_dangerous(path, FieldError)
    try:
        with open(path, "rb") as file:
            value = _Plain(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise FieldError(f"{path}: {error}; convert it to JSON with the same fields") from error
    if not isinstance(value, list):
        raise FieldError(f"{path}: holds {type(value).__name__}, expected a list")
    return value


class UniMedDataset(ABC):
    """What the data sets share.

    Args:
        split: "train" draws a question template at random each time, any other takes a fixed one.
        compat: "reference" keeps only the first 50 words of questions and answers; by default nothing is cut.
        pools: JSON file with your own question templates, such as the wording a checkpoint was trained with.
        template: number of the template to take always.
        limit: keep only the first so many records.

    Raises:
        FileNotFoundError: a file is missing.
        FieldError: a field is missing; file, record and field are named.
        ValueError: unknown `compat`.
    """

    benchmark = ""

    def __init__(self, split="train", compat=None, pools=None, template=None, limit=None):
        if compat not in (None, "reference"):
            raise ValueError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
        self.split, self.pools, self.template = split, pools, template
        self.words = PUBLISHED_WORDS if compat == "reference" else None
        self.records = list(self.read())
        self.records = self.records if limit is None else self.records[:limit]

    @abstractmethod
    def read(self):
        """The records of the split, in the order of the file."""

    def __len__(self) -> int:
        return len(self.records)

    def ask(self, kind: str, subject: str = "") -> Intent:
        compat = None if self.words is None else "reference"
        return Intent(kind, subject, drawn=self.split == "train", pools=self.pools, number=self.template, compat=compat)

    def sample(self, number, task, intent, answer, images=(), regions=(), patient="", **labels) -> Sample:
        arrays, geometry = [], Geometry.pixels()
        for path in images:
            array, geometry = (path, geometry) if isinstance(path, np.ndarray) else self.image(path)
            arrays.append(array)
        return Sample(
            images=tuple(arrays),
            geometry=geometry,
            sample_id=f"{self.benchmark}-{number}",
            conversation=(("user", canonical.question(intent)), ("assistant", answer)),
            intent=intent,
            regions=tuple(regions),
            labels={"task": task, "benchmark": self.benchmark, **labels},
            patient_id=patient,
            source=self.benchmark,
            label_origin="published with the data set",
        )

    def image(self, path: Path):
        try:
            image = load_image(path)
        except (FileNotFoundError, ReadError, ImageError) as error:
            raise FieldError(f"{self.benchmark}: image {path}: {error}") from error
        return image.pixels, image.geometry

    def cut_question(self, text: str) -> str:
        """Without an image the published code counts the tag of the task as a word."""
        return clean(text, None if self.words is None else self.words - 1)


@DATASETS.register_module()
class MedQADataset(UniMedDataset):
    """`<root>/questions/US/<split>.jsonl` with question and answer; the choices are not shown, as published."""

    benchmark, pool = "medqa_en", "medqa_en"

    def __init__(self, root, **options):
        self.root = Path(root)
        super().__init__(**options)

    def read(self):
        path = self.root / "questions" / "US" / f"{self.split}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        for number, record in read_json_lines(path, error=FieldError):
            where = f"{path}: record {number}"
            yield field(record, "question", str, where), field(record, "answer", str, where)

    def __getitem__(self, index: int) -> Sample:
        question, answer = self.records[index]
        return self.sample(index, "qa", self.ask(self.pool, self.cut_question(question)), clean(answer, self.words))


@DATASETS.register_module()
class PubMedQADataset(MedQADataset):
    """`<root>/<split>_set.json`: id -> QUESTION and final_decision (yes, no, maybe); contexts are not shown."""

    benchmark, pool = "pubmedqa", "pubmedqa"

    def read(self):
        path = self.root / f"{self.split}_set.json"
        for name, record in _json(path, dict).items():
            where = f"{path}: record {name}"
            yield field(record, "QUESTION", str, where), field(record, "final_decision", str, where)


@DATASETS.register_module()
class SlakeVQADataset(UniMedDataset):
    """`<root>/<split>.txt` names folders; `imgs/<folder>/question.json` lists img_name, question, answer, q_lang,
    answer_type. Questions of `language` with an answer are kept."""

    benchmark = "slakevqa_en"

    def __init__(self, root, language: str = "en", **options):
        self.root, self.language = Path(root), language
        super().__init__(**options)

    def read(self):
        for folder in _folders(self.root, self.split):
            path = inside(self.root, f"imgs/{folder}/question.json", f"{self.root}/{self.split}.txt")
            for number, record in enumerate(_json(path, list)):
                where = f"{path}: record {number}"
                values = {name: field(record, name, str, where) for name in
                          ("img_name", "question", "answer", "q_lang", "answer_type")}  # fmt: skip
                if values["q_lang"] == self.language and values["answer"]:
                    yield values

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        question = self.ask("question", clean(record["question"], self.words))
        images = [inside(self.root, f"imgs/{record['img_name']}", f"{self.benchmark}: record {index}")]
        answer = clean(record["answer"], self.words)
        return self.sample(index, "vqa", question, answer, images, answer_type=record["answer_type"])


@DATASETS.register_module()
class PathVQADataset(UniMedDataset):
    """A list of img_id, sent, label (first key is the answer), question_id, answer_type, as pickle of plain containers
    or as JSON; images are `<image_root>/<split>/<img_id>.jpg`, the split being what `img_id` begins with."""

    benchmark = "path_vqa"

    def __init__(self, annotations, image_root, **options):
        self.path, self.image_root = Path(annotations), Path(image_root)
        super().__init__(**options)

    def read(self):
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        records = _json(self.path, list) if self.path.suffix == ".json" else read_plain_pickle(self.path)
        for number, record in enumerate(records):
            where = f"{self.path}: record {number}"
            label = field(record, "label", dict, where)
            if not label:
                raise FieldError(f"{where}: field 'label' is empty, its first key is the answer")
            yield {
                "image": field(record, "img_id", str, where),
                "question": field(record, "sent", str, where),
                "answer": str(next(iter(label))),
                "type": field(record, "answer_type", str, where),
                "id": field(record, "question_id", int, where),
            }

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        folder = record["image"].split("_")[0]
        kind = "CLOSED" if record["type"] == "yes/no" else "OPEN"
        question = self.ask("question", clean(record["question"], self.words))
        name = f"{folder}/{record['image']}.jpg"
        images = [inside(self.image_root, name, f"{self.path}: question {record['id']}")]
        answer = clean(record["answer"], self.words)
        return self.sample(record["id"], "vqa", question, answer, images, answer_type=kind)


class _Boxes(UniMedDataset):
    """One sample per box: "refer" asks for the box of a name, "identify" for the name of a box."""

    def __init__(self, task: str, **options):
        if task not in BOX_TASKS:
            raise ValueError(f"task {task!r} is not known; choose one of: {', '.join(BOX_TASKS)}")
        self.task = task
        self.benchmark = f"{'ref' if task == 'refer' else 'invref'}_{self.family}"
        super().__init__(**options)

    def entries(self, path: Path, image: Path, name: str):
        for number, entry in enumerate(_json(path, list)):
            where = f"{path}: record {number}"
            if not isinstance(entry, dict) or len(entry) != 1:
                raise FieldError(f"{where}: expected one key, the object, with [x, y, width, height]")
            ((phrase, box),) = entry.items()
            numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
            if not numbers or box[2] <= 0 or box[3] <= 0:
                raise FieldError(f"{where}: field {phrase!r} must be [x, y, width, height] with an area, got {box!r}")
            yield {"phrase": phrase, "box": box, "image": image, "id": f"{name}-{number}"}

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        array, _ = self.image(record["image"])
        x, y, w, h = record["box"]
        corners, phrase = (float(x), float(y), float(x + w), float(y + h)), clean(record["phrase"], self.words)
        region = Region(phrase=phrase, box_xyxy_px=corners)
        intent, answer = self.ask("box", phrase), BOX_TOKEN
        if self.task == "identify":
            intent, answer = self.ask("region1", "region1"), phrase
        return self.sample(record["id"], self.task, intent, answer, [array], [region])


@DATASETS.register_module()
class SlakeBoxDataset(_Boxes):
    """`<root>/<split>.txt` and `imgs/<folder>/detection.json`: a list of {object: [x, y, w, h]} on `source.jpg`."""

    family = "slake"

    def __init__(self, root, task: str = "refer", **options):
        self.root = Path(root)
        super().__init__(task, **options)

    def read(self):
        for folder in _folders(self.root, self.split):
            place = inside(self.root, f"imgs/{folder}", f"{self.root}/{self.split}.txt")
            yield from self.entries(place / "detection.json", place / "source.jpg", folder)


@DATASETS.register_module()
class SAMedBoxDataset(_Boxes):
    """`<region_dir>/<modality>/<image>.json` as Slake's boxes, `<image_dir>/<modality>/<image>.png`; sorted by name."""

    family = "sa_med"

    def __init__(self, region_dir, image_dir, task: str = "refer", **options):
        self.region_dir, self.image_dir = Path(region_dir), Path(image_dir)
        super().__init__(task, **options)

    def read(self):
        if not self.region_dir.is_dir():
            raise FileNotFoundError(f"{self.region_dir}: no such folder")
        for path in sorted(self.region_dir.glob("*/*.json")):
            image = inside(self.image_dir, f"{path.parent.name}/{path.stem}.png", str(path))
            yield from self.entries(path, image, path.stem)


@DATASETS.register_module()
class MimicReportDataset(UniMedDataset):
    """R2Gen's JSON {train, val, test}: image_path (the first is taken) and report; images below `<image_root>/files`.

    Records whose image is not there are left out, because MIMIC-CXR is often held in part; `missing` counts them.
    """

    benchmark = "mimic_caption"
    below = "files/"

    def __init__(self, annotations, image_root, **options):
        self.path, self.image_root, self.missing = Path(annotations), Path(image_root), 0
        super().__init__(**options)

    def read(self):
        splits = _json(self.path, dict)
        for number, record in enumerate(field(splits, self.split, list, str(self.path))):
            where = f"{self.path}: {self.split} record {number}"
            paths, report = field(record, "image_path", list, where), field(record, "report", str, where)
            if not paths:
                raise FieldError(f"{where}: field 'image_path' is empty")
            image = inside(self.image_root, f"{self.below}{paths[0]}", where)
            if image.is_file():
                yield image, report, self.patient_of(paths[0])
            else:
                self.missing += 1

    def patient_of(self, path: str) -> str:
        """The patient in the path of an image (`p10/p10000032/...`)."""
        return patient_of(path)

    def __getitem__(self, index: int) -> Sample:
        image, report, patient = self.records[index]
        intent, answer = self.ask("chest_report"), clean(report, self.words)
        return self.sample(index, "caption", intent, answer, [image], patient=patient)


@DATASETS.register_module()
class IuReportDataset(MimicReportDataset):
    """Indiana University's radiographs in R2Gen's layout: `<image_root>/CXR.../0.png`; the folder is the study."""

    benchmark, below = "iu_caption", ""

    def patient_of(self, path: str) -> str:
        return path.split("/")[0]


@DATASETS.register_module()
class MedPixDataset(UniMedDataset):
    """CSV with name, context and type: rows of type caption without an empty cell whose images are there.

    Args:
        separator: where it is given, `name` holds several images (MPx-Multi); the layout is ours, none is published.
    """

    def __init__(self, table, image_dir, separator: str | None = None, **options):
        self.path, self.image_dir, self.separator, self.missing = Path(table), Path(image_dir), separator, 0
        self.benchmark = "medpix_single" if separator is None else "medpix_multi"
        super().__init__(**options)

    def read(self):
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        with open(self.path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file)):
                where = f"{self.path}: record {number}"
                name, context, kind = (field(row, key, str, where) for key in ("name", "context", "type"))
                if kind != "caption" or not all(row.values()):
                    continue
                names = [name] if self.separator is None else [n.strip() for n in name.split(self.separator)]
                images = [inside(self.image_dir, n, where) for n in names]
                if all(image.is_file() for image in images):
                    yield images, context
                else:
                    self.missing += 1

    def __getitem__(self, index: int) -> Sample:
        images, text = self.records[index]
        return self.sample(index, "caption", self.ask("caption"), clean(text, self.words), images)


@DATASETS.register_module()
class MedMnistDataset(UniMedDataset):
    """A MedMNIST file (`dermamnist_224.npz`, `organsmnist_224.npz`) with <split>_images and <split>_labels.

    Args:
        name: dermamnist or organsmnist; by default what the file name begins with.
    """

    def __init__(self, path, name: str | None = None, **options):
        self.path = Path(path)
        self.name = name or self.path.name.split("_")[0].removesuffix(".npz")
        if self.name not in MEDMNIST:
            raise ValueError(f"{path}: name {self.name!r} is not known; choose one of: {', '.join(MEDMNIST)}")
        self.benchmark = f"medmnist_2d_{'derma' if self.name == 'dermamnist' else 'organs'}"
        super().__init__(**options)

    def read(self) -> Sequence[int]:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        with np.load(self.path, allow_pickle=False) as stored:
            for key in (f"{self.split}_images", f"{self.split}_labels"):
                if key not in stored:
                    raise FieldError(f"{self.path}: field {key!r} is missing; there are {sorted(stored)}")
            self.images, labels = stored[f"{self.split}_images"], stored[f"{self.split}_labels"].reshape(-1)
        classes = MEDMNIST[self.name]
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            where = f"{self.path}: record {wrong[0]}: field '{self.split}_labels'"
            raise FieldError(f"{where} is {labels[wrong[0]]}, there are {len(classes)} classes")
        return labels.tolist()

    def __getitem__(self, index: int) -> Sample:
        classes = MEDMNIST[self.name]
        question = self.ask(self.name, ", ".join(classes[:-1]) + f", or {classes[-1]}")
        answer = classes[self.records[index]]
        return self.sample(index, "cls", question, answer, [self.images[index]], choices=list(classes))


def inside(root: Path, name: str, where: str) -> Path:
    """A file that the data set names, within its folder; see `resolve_inside`."""
    return resolve_inside(root, name, where=where, error=FieldError)


def _folders(root: Path, split: str) -> list[str]:
    path = root / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it names the image folders of the split, one a line")
    return read_lines(path)

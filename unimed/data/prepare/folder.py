"""Your own folders into records that train any grounded model: images with masks, classes, or a table.

unimed prepare folder images/ masks/ --out data/mine --phrase tumor --modality MRI
unimed prepare folder imagesTr/ labelsTr/ --out data/mine --labels 1=liver 2="liver tumor" --modality CT --site abdomen
unimed prepare folder dicom/ masks/ --out data/mine --labels 1=liver        (dicom/CASE/*.dcm, masks/CASE.nii.gz)
unimed prepare folder images/ --classes --out data/mine
unimed prepare folder images/ --table list.csv --out data/mine

Then: unimed train --data data/mine
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.data.prepare.cases import SPLITS, box_of, slug
from unimed.data.prepare.label_names import Names
from unimed.data.prepare.pairing import (
    FolderError,
    ImageFile,
    MaskFile,
    by_class,
    dicom_patient,
    from_table,
    is_volume,
    pair,
)
from unimed.data.prepare.pieces import Pieces, add_workers, pieces_of
from unimed.data.prepare.questions import BOX, IF_PRESENT, SEGMENT, Answer
from unimed.files import is_of_the_disk, write_json_lines, write_report
from unimed.geometry import GeometryError, align
from unimed.identity import quick_stamp
from unimed.io.errors import ImageError, MaskError, ReadError
from unimed.io.images import load
from unimed.io.masks import load_mask, whole_numbers
from unimed.io.read import read
from unimed.io.windows import unknown_modality
from unimed.names import without_suffix

#: Things that are not there are asked for at most so often per image, so that "no" does not outnumber the masks.
MOST_ABSENT = 2
#: What goes wrong with one file; it is named, and with `--skip-bad` left out.
BROKEN = (ReadError, ImageError, MaskError, OSError)


def add_arguments(parser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("images", help="folder of images or volumes")
    parser.add_argument("masks", nargs="?", help="folder of masks or label maps")
    parser.add_argument(
        "--out", writes="folder", required=True, help="folder of the data set to write; must not be there yet"
    )
    parser.add_argument("--phrase", default="", help="what the masks show, where their names do not say it")
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="VALUE=NAME",
        help="values of label maps, or a JSON file such as nnU-Net's; every value has a name, `background` is left out",
    )
    parser.add_argument(
        "--colors",
        nargs="+",
        metavar="RRGGBB=NAME",
        help="colors of color maps, in hexadecimal; every color but black has a name",
    )
    parser.add_argument("--classes", action="store_true", help="images lie in one folder per class")
    parser.add_argument("--table", help="CSV or TSV: image, mask, phrase, class, patient, split, question, answer, ...")
    parser.add_argument("--patient-pattern", help="regular expression; its group is the patient in a file name")
    parser.add_argument(
        "--split",
        nargs=3,
        type=float,
        default=(0.7, 0.15, 0.15),
        metavar=("TRAIN", "VAL", "TEST"),
        help="fractions of the patients, or of the files where no patient is named (default: 0.7 0.15 0.15)",
    )
    parser.add_argument("--modality", default="", help="CT, MR, X-ray, ... of all images")
    parser.add_argument("--site", default="", help="body site of all images, for the CT window")
    parser.add_argument("--skip-bad", action="store_true", help="leave files out that cannot be used; they are named")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the wording")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or 2 where `--skip-bad` left something out.

    Raises:
        FolderError: nothing was written; the message says why.
    """
    root = Path(args.images)
    if args.table and args.masks:
        raise FolderError(f"{args.masks}: --table names the masks, in a column `mask`, relative to {args.images}")
    if args.classes and (args.masks or args.table):
        raise FolderError("--classes stands instead of a folder of masks and of --table")
    if args.table:
        images, problems = from_table(Path(args.table), root), []
    elif args.classes:
        images, problems = by_class(root), []
    elif args.masks:
        images, problems = pair(root, Path(args.masks))
    else:
        raise FolderError("give a folder of masks, --classes, or --table; see `unimed prepare folder --help`")
    names = Names.of(args)
    for image in images:
        image.modality, image.site = image.modality or args.modality, image.site or args.site
        image.patient = image.patient or _patient(image, args.patient_pattern)
    from_header = _name_dicom_patients(images)
    remarks = from_header + assign_splits(images, args.split, args.seed)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is already there; choose another name or remove it")
    named = [names.phrase, sorted(map(str, names.known)), sorted(map(str, names.values.items()))]
    settings = {"names": named, "seed": args.seed}
    with pieces_of(out.absolute().parent / f".{out.name}.preparing", settings) as pieces:
        folder = pieces.folder
        counts, broken = write(images, names, pieces, args.seed, args.workers)
        problems += broken
        if len(problems) == 1 and not args.skip_bad:
            raise FolderError(f"{problems[0]}; nothing was written, --skip-bad leaves it out")
        if problems and not args.skip_bad:
            for problem in problems[:20]:
                print(f"problem: {problem}", file=sys.stderr)
            raise FolderError(
                f"{len(problems)} problems, nothing was written; mend them, or leave those files out with --skip-bad"
            )
        if not counts:
            raise FolderError(
                f"{root}: no record could be made; {problems[0] if problems else 'no mask, class or text'}"
            )
        write_report(folder / "dataset.json", {"name": out.name, "records": _by_split(counts)})
        os.replace(folder, out)
    remarks += _empty_splits(counts, len({image.patient or image.key for image in images}))
    if remark := unknown_modality(args.modality):
        remarks.append(remark)
    for problem in problems:
        print(f"left out: {problem}")
    for remark in remarks:
        print(f"remark: {remark}")
    print("| split | " + " | ".join(tasks := sorted({task for _, task in counts})) + " |")
    print("|---" * (1 + len(tasks)) + "|")
    for split in SPLITS[:3]:
        print(f"| {split} | " + " | ".join(str(counts[split, task]) for task in tasks) + " |")
    print(f"{args.out}: check it with `unimed check-data {args.out}`, train with `unimed train --data {args.out}`")
    return 2 if problems else 0


def _empty_splits(counts: Counter, patients: int) -> list[str]:
    """What is missed where a split got no record."""
    lost = {"train": "there is nothing to train on", "val": "a training is not validated", "test": "nothing is tested"}
    empty = [split for split in SPLITS[:3] if not any(counts[split, task] for _, task in counts)]
    hint = f"{patients} patients in all; --split, or a column `split`, says who goes where"
    return [f"no record is in {split}: {lost[split]} ({hint})" for split in empty]


def _patient(image: ImageFile, pattern: str | None) -> str:
    if not pattern:
        return ""
    match = re.search(pattern, image.path.name) or re.search(pattern, image.key)
    if match is None:
        raise FolderError(f"{image.path}: --patient-pattern {pattern!r} finds no patient in its name")
    return match.group(1) if match.groups() else match.group()


def _name_dicom_patients(images: list[ImageFile]) -> list[str]:
    """Patients of DICOM files whose patient nobody named, by their headers; numbered, so that no record tells who.

    Returns remarks.
    """
    numbers: dict[str, int] = {}
    for image in images:
        if not image.patient and (found := dicom_patient(image.path)):
            image.patient = f"dicom-patient-{numbers.setdefault(found, len(numbers) + 1)}"
    return [f"{len(numbers)} patients were told apart by the headers of DICOM files"] if numbers else []


def assign_splits(images: list[ImageFile], fractions, seed: int) -> list[str]:
    """Give every image a split that has none: whole patients, in an order drawn by `seed`. Returns remarks.

    Raises:
        FolderError: fractions that are negative or sum to nothing; a patient that was put into two splits.
    """
    if min(fractions) < 0 or not sum(fractions):
        raise FolderError(f"--split {fractions}: three fractions of 0 or more")
    remarks = []
    if not any(image.patient for image in images):
        remarks.append("no patient is named: every file counts as a patient of its own; see --patient-pattern")
    groups: dict[str, list[ImageFile]] = defaultdict(list)
    for image in images:
        groups[image.patient or f"file {image.key}"].append(image)
    free = []
    for patient, members in groups.items():
        stated = {image.split for image in members if image.split}
        if len(stated) > 1:
            places = {image.split: image.path or image.key for image in members}
            where = ", ".join(f"{places[split]} in {split}" for split in sorted(stated))
            raise FolderError(f"one patient lies in several splits: {where}; keep one split per patient")
        if not stated:
            free.append(patient)
        for image in members:
            image.split = next(iter(stated), "")
    # By a hash, so that a data set that grows keeps the order of those it had.
    free.sort(key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).digest())
    parts = np.array(fractions, float) / sum(fractions)
    ends = np.round(np.cumsum(parts) * len(free)).astype(int)
    if len(free) >= np.count_nonzero(parts):  # nobody asked for goes away empty
        for place in range(2):
            low = ends[place - 1] if place else 0
            ends[place] = max(ends[place], low + (parts[place] > 0))
        for place in (1, 0):
            ends[place] = min(ends[place], ends[place + 1] - (parts[place + 1] > 0))
    for place, patient in enumerate(free):
        for image in groups[patient]:
            image.split = SPLITS[int(np.searchsorted(ends, place, side="right"))]
    return remarks


def write(
    images: list[ImageFile], names: Names, pieces: Pieces, seed: int, workers: int = 1
) -> tuple[Counter, list[str]]:
    """Copy files and write records. Returns ({(split, task): records}, problems)."""
    records: dict[str, list[dict]] = {split: [] for split in SPLITS}
    counts, problems = Counter(), []
    classes = sorted({image.class_name for image in images if image.class_name})
    vocabulary = sorted({*names.values.values()} | {mask.phrase for image in images for mask in image.masks} - {""})
    stems = Counter(slug(image.key) for image in images)
    items, keys = [], []
    for number, image in enumerate(images):
        stem = slug(image.key) or "image"
        if stems[slug(image.key)] > 1 or not slug(image.key):
            stem = f"{stem}_{number}"
        items.append((image, stem))
        files = [image.path, *(mask.path for mask in image.masks)]
        keys.append([stem, repr(image), [quick_stamp(path) for path in files], vocabulary, classes])
    make = _RecordsOf(names, vocabulary, classes, pieces.folder, seed)
    for image, made in zip(images, pieces.results(make, items, keys, workers, "image"), strict=True):
        if isinstance(made, str):
            problems.append(made)
            continue
        for record in made:
            records[image.split].append(record)
            counts[image.split, record["task"]] += 1
    for split, rows in records.items():
        if rows or split != "aux":
            write_json_lines(pieces.folder / "records" / f"{split}.jsonl", rows)
    return counts, problems


@dataclass(frozen=True)
class _RecordsOf:
    """Makes the records of an image and copies its files; what is wrong with it is a text instead."""

    names: Names
    vocabulary: list[str]
    classes: list[str]
    folder: Path
    seed: int

    def __call__(self):
        return self.of

    def of(self, item: tuple[ImageFile, str]) -> list[dict] | str:
        image, stem = item
        try:
            return list(_records(image, stem, self.names, self.vocabulary, self.classes, self.folder, self.seed))
        except BROKEN as error:
            if is_of_the_disk(error):
                raise
            return str(error) if str(image.path) in str(error) else f"{image.path}: {error}"


def _records(image: ImageFile, stem: str, names: Names, vocabulary, classes, folder: Path, seed: int):
    volume = is_volume(image.path)
    draw = random.Random(f"{seed}/{image.key}")
    if volume:
        array, geometry = read(image.path)
        source = (array.shape, geometry)
    else:
        source = load(image.path, modality=image.modality, site=image.site)
    found = [entry for mask in image.masks for entry in _masks(mask, names, source, volume)]
    common = {
        ("volume" if volume else "image"): _copied(image.path, folder / "images", stem, folder),
        "modality": image.modality, "site": image.site, "split": image.split, "source": "own data", "license": "own",
        "patient_id": image.patient or f"file-{stem}", "label_origin": "as given",
    }  # fmt: skip
    copies: dict[Path, str] = {}
    number = 0

    def record(task: str, question: str, answer: Answer | str, **more) -> dict:
        nonlocal number
        number += 1
        answer = Answer().say(answer) if isinstance(answer, str) else answer
        text = {"id": f"{stem}-{task}-{number}", "task": task, "question": question, "answer": answer.text}
        return {**text, **common, "regions": answer.regions, "label": None, "choices": None, "note": "", **more}

    missing = (
        [phrase for phrase in vocabulary if phrase not in {phrase for phrase, *_ in found}] if names.values else []
    )
    for phrase, mask, value, inside in found:
        if not inside.any():
            missing.append(phrase)
            continue
        if mask.path not in copies:
            end = f"-{len(copies)}" if copies else ""
            copies[mask.path] = _copied(mask.path, folder / "masks", f"{stem}{end}", folder)
        answer = Answer().point(phrase, mask=copies[mask.path])
        if value is not None:
            answer.regions[0]["mask_label"] = list(value) if isinstance(value, tuple) else value
        task = "volume" if volume else "referring"
        yield record(task, draw.choice(SEGMENT).format(phrase), answer.say("."))
        if not volume:
            yield record("box", draw.choice(BOX).format(phrase), Answer().point(phrase, box=box_of(inside)).say("."))
    for phrase in draw.sample(missing, min(MOST_ABSENT, len(missing))):
        if not volume:
            answer = Answer().say(f"There is no {phrase} in this image.").deny(phrase)
            yield record("absent", draw.choice(IF_PRESENT).format(phrase), answer)
    if image.class_name:
        question = f"Which of these is it: {', '.join(classes)}?"
        yield record("classification", question, image.class_name, label=image.class_name, choices=classes)
    for question, answer in image.texts:
        yield record("vqa", question, answer)


def _masks(mask: MaskFile, names: Names, source, volume: bool):
    """(phrase, mask, value in its file, bool array) of everything a mask file shows."""
    if names.known and not mask.phrase and mask.value is None:
        names.refuse_unknown(mask.path, volume)
        labels = _volume_labels(mask.path, *source) if volume else None
        for value, phrase in names.values.items():
            if volume:
                inside = labels == value
            else:
                inside = load_mask(mask.path, label=value, image=source, name=str(mask.path))[0]
            yield phrase, mask, value, inside
        return
    phrase = mask.phrase or names.values.get(mask.value, "") or names.phrase
    if not phrase:
        raise MaskError(f"{mask.path}: nothing says what it shows; give --phrase, or --labels for a label map")
    if volume:
        labels = _volume_labels(mask.path, *source)
        yield phrase, mask, mask.value, (labels > 0 if mask.value is None else labels == mask.value)
    else:
        yield phrase, mask, mask.value, load_mask(mask.path, label=mask.value, image=source, name=str(mask.path))[0]


def _volume_labels(path: Path, shape: tuple[int, ...], target) -> np.ndarray:
    """The label map of a volume in the order of its axes.

    Raises:
        MaskError: it lies on another grid.
    """
    labels, geometry = read(path)
    try:
        return align(whole_numbers(labels, str(path)), geometry, target, shape)[0]
    except GeometryError as error:
        raise MaskError(f"{path}: mask is {labels.shape}, its image {shape}: {error}; resample it first") from error


def _copied(path: Path, destination: Path, stem: str, folder: Path) -> str:
    destination.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, destination / stem, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        return (destination / stem).relative_to(folder).as_posix()
    suffix = path.name[len(without_suffix(path.name)) :]
    copy = destination / f"{stem}{suffix.lower()}"
    shutil.copyfile(path, copy)
    return copy.relative_to(folder).as_posix()


def _by_split(counts: Counter) -> dict:
    return {split: {task: n for (s, task), n in sorted(counts.items()) if s == split} for split in SPLITS[:3]}

"""Folders in BiomedParse's layout, checked and listed: PNG pairs to `SPLIT.json`, challenge NPZ files to slices.

DIR/train/[IMAGE]_[MODALITY]_[SITE].png     DIR/train_mask/[IMAGE]_[MODALITY]_[SITE]_[TARGET].png
DIR/train/*.npz                             `imgs`, `gts`, `spacing`, `text_prompts`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from unimed.data.prepare.pieces import add_workers
from unimed.files import resolve_inside
from unimed.workers import in_order

KINDS = ("name", "missing file", "mask", "unreadable", "duplicate", "patient leakage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tools/prepare_data.py biomedparse`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", help="folder with SPLIT/ and SPLIT_mask/, or with NPZ files in SPLIT/")
    parser.add_argument("--out", writes="folder", help="NPZ only: where the slices go (default: FOLDER/slices)")
    parser.add_argument("--patient-pattern", help="regular expression, its first group is the patient in a file name")
    parser.add_argument("--skip-bad", action="store_true", help="write what is sound instead of stopping at problems")
    parser.add_argument("--check-only", action="store_true", help="write nothing")
    parser.add_argument("--size", type=int, default=512, help="NPZ only: side of the slices (default: 512)")
    parser.add_argument("--prompts", help="NPZ only: JSON file with the table of prompts, where the files hold none")
    parser.add_argument("--most", type=int, default=20, help="how many problems to print (default: 20)")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Check, then write; returns the exit code: 1 where there are problems that were not skipped."""
    folder = Path(args.folder)
    if not folder.is_dir():
        print(f"error: {folder}: no such folder", file=sys.stderr)
        return 1
    try:
        if any(folder.glob("*.npz")) or any(folder.glob("*/*.npz")):
            from unimed.data.prepare.challenge_slices import prepare_volumes

            report, written = prepare_volumes(args)
        else:
            report, tables = check_images(folder, args.patient_pattern, args.workers)
            written = [] if args.check_only or (report.problems and not args.skip_bad) else write(folder, tables)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.table(args.most))
    for path in written:
        print(path)
    if report.problems and not args.skip_bad:
        print("nothing was written; repair the files, or leave the bad ones out with --skip-bad", file=sys.stderr)
        return 1
    return 0


def check_images(folder: Path, patient_pattern: str | None = None, workers: int = 1):
    """Check every split of PNG pairs.

    Names follow the grammar; every mask has its image and its size, is not empty, has one value besides 0; no target
    is there twice, no image has the pixels of one in another split, no patient is in two splits.

    Args:
        workers: processes that read images and masks.

    Returns:
        (Report, {split: rows}), a row being {"image": ParseName, "file", "size", "patient", "masks": {target: file}},
        of what passed.

    Raises:
        FileNotFoundError: no folder pair SPLIT, SPLIT_mask.
    """
    from unimed.data.checks import Report
    from unimed.data.readers.biomedparse_names import FileNameError, parse_mask_name
    from unimed.data.wordings.biomedparse_targets import category

    splits = sorted(p.name for p in folder.iterdir() if p.is_dir() and (folder / f"{p.name}_mask").is_dir())
    if not splits:
        raise FileNotFoundError(f"{folder}: no pair of folders SPLIT and SPLIT_mask, such as train and train_mask")
    report, tables = Report(kinds=KINDS), {}
    contents, patients = defaultdict(set), defaultdict(lambda: defaultdict(list))
    unknown, masks_without = set(), 0
    for split in splits:
        images, found = {}, {}
        files = [path.name for path in sorted((folder / split).iterdir())]
        looked = in_order(_same(_image_of), [(folder, split, file) for file in files], workers)
        for file, (kind, found_there) in zip(files, looked, strict=True):
            if kind:
                report.problems.append((split, kind, found_there))
                continue
            name, size, source, content = found_there
            patient = re.search(patient_pattern, file) if patient_pattern else None
            row = {"image": name, "file": file, "size": size, "masks": {}, "source": source}
            row["patient"] = patient.group(1) if patient else ""
            images[name.stem] = row
            contents[content].add((split, file))
            if patient:
                patients[patient.group(1)][split].append(file)
        named, looks = [], []
        for path in sorted((folder / f"{split}_mask").iterdir()):
            try:
                name = parse_mask_name(path.name)
            except FileNameError as error:
                report.problems.append((split, "name", str(error)))
                continue
            row = images.get(name.stem)
            if row is None:
                report.problems.append((split, "missing file", f"{path.name}: no image {name.stem}.png in {split}"))
                continue
            named.append((path, name, row))
            looks.append((folder, f"{split}_mask/{path.name}", row["size"], row["source"]))
        masks = in_order(_same(_mask_of), looks, workers)
        for (path, name, row), (kind, problem, remarks) in zip(named, masks, strict=True):
            report.remarks += [f"{split}/{path.name}: {one}" for one in remarks]
            if kind:
                report.problems.append((split, kind, problem))
                continue
            if name.target.lower() in (t.lower() for t in row["masks"]):
                report.problems.append((split, "duplicate", f"{path.name}: {name.target!r} is there twice"))
                continue
            row["masks"][name.target] = path.name
            found[path.name] = row
            if category(name.target) is None:
                unknown.add(name.target)
        masks_without += sum(not row["masks"] for row in images.values())
        tables[split] = [row for row in images.values() if row["masks"]]
        report.parts[split] = sum(len(row["masks"]) for row in images.values())
    report.problems += [
        ("all", "duplicate", f"identical pixels: {_places(p)}") for p in contents.values() if len(p) > 1
    ]
    for where in patients.values():
        if len(where) > 1:
            example = next(iter(where[sorted(where)[0]]))
            report.problems.append(
                ("all", "patient leakage", f"the patient of {example} is in {', '.join(sorted(where))}")
            )
    if masks_without:
        report.remarks.append(f"{masks_without} images have no mask and are left out")
    if unknown:
        report.remarks.append(f"{len(unknown)} targets are new to the hierarchy: {', '.join(sorted(unknown)[:8])}")
    if patient_pattern is None and len(splits) > 1:
        report.remarks.append("patients were not compared; give --patient-pattern, a regular expression with one group")
    return report, tables


def write(folder: Path, tables: dict[str, list[dict]]) -> list[Path]:
    """`SPLIT.json` for every split, COCO-like as published, with `modality`, `site` and `target` besides."""
    from unimed.data.readers.biomedparse_names import ParseName
    from unimed.data.wordings.biomedparse_targets import category, known
    from unimed.files import write_atomic

    categories = {entry["name"]: entry["id"] for entry in known()["hierarchy"]}
    families = {entry["name"]: entry["parent"] for entry in known()["hierarchy"]}
    targets = {target for rows in tables.values() for row in rows for target in row["masks"]}
    for target in sorted(t for t in targets if category(t) is None):
        # Published readers refuse a target that they do not know; here it becomes a category of its own.
        categories[target], families[target] = max(categories.values()) + 1, "other"
    paths = []
    for split, rows in tables.items():
        images, annotations = [], []
        for number, row in enumerate(rows):
            height, width = row["size"]
            entry = {"file_name": row["file"], "height": height, "width": width, "id": number}
            entry |= {"patient_id": row["patient"]} if row["patient"] else {}
            images.append(entry)
            for target, mask_file in row["masks"].items():
                place = len(annotations)
                name = row["image"]
                prompt = ParseName(name.image, name.modality, name.site, target).prompt
                known_as = category(target)
                annotations.append(
                    {
                        "mask_file": mask_file,
                        "iscrowd": 0,
                        "image_id": number,
                        "category_id": known_as["id"] if known_as else categories[target],
                        "id": place,
                        "file_name": row["file"],
                        "split": split,
                        "sentences": [{"raw": prompt, "sent": prompt, "sent_id": place}],
                        "sent_ids": [place],
                        "ann_id": place,
                        "ref_id": place,
                        "target": target,
                        "modality": name.modality,
                        "site": name.site,
                    }
                )
        content = {
            "info": {"description": folder.name},
            "licenses": [],
            "images": images,
            "categories": [
                {"supercategory": families[name] or "none", "id": number, "name": name}
                for name, number in categories.items()
            ],
            "annotations": annotations,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        paths.append(
            write_atomic(folder / f"{split}.json", lambda path, text=text: path.write_text(text, encoding="utf-8"))
        )
    return paths


def _same(function):
    """What gives each process its work."""
    return partial(partial, function)


def _image_of(item: tuple[Path, str, str]):
    """("", (name, size, source, digest of the pixels)) of an image, or (kind of problem, its text)."""
    from unimed.data.readers.biomedparse_names import FileNameError, parse_image_name
    from unimed.io.errors import ImageError, ReadError
    from unimed.io.images import load

    folder, split, file = item
    try:
        name = parse_image_name(file)
        source = load(resolve_inside(folder, f"{split}/{file}", error=ReadError), modality=name.modality)
        image = source.pixels
    except FileNameError as error:
        return "name", str(error)
    except (ReadError, ImageError) as error:
        return "unreadable", str(error)
    content = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
    return "", (name, image.shape[:2], source.source, content)


def _mask_of(item) -> tuple[str, str, tuple[str, ...]]:
    """(kind of problem or "", its text, what should be looked at) of a mask."""
    from unimed.io.errors import MaskError, ReadError
    from unimed.io.images import Image
    from unimed.io.masks import load_mask

    folder, file, size, source = item
    try:
        path = resolve_inside(folder, file, error=ReadError)
        # The mask belongs to the image as it is shown; of that only its size and its EXIF turn are needed here.
        image = Image(np.broadcast_to(np.uint8(0), (*size, 3)), source=source)
        mask, remarks = load_mask(path, image=image, name=path.name)
    except MaskError as error:
        return "mask", str(error), ()
    except ReadError as error:
        return "unreadable", str(error), ()
    if not mask.any():
        return "mask", f"{path.name}: mask is empty", ()
    several = [one for one in remarks if "count" in one]
    if several:
        problem = f"mask is not binary: {several[0]}; threshold it, or split it into one file per target"
        return "mask", f"{path.name}: {problem}", ()
    return "", "", remarks


def _places(places) -> str:
    return ", ".join(f"{split}/{name}" for split, name in sorted(places)[:3])

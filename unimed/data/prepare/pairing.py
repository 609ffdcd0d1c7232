"""Which mask belongs to which image, and what it shows: the ways in which people lay their folders out.

images/case7.png        masks/case7.png               same name; `--phrase` or `--labels` say what is shown
images/case7.png        masks/case7_effusion.png      the rest of the name is what is shown
images/case7.png        masks/effusion/case7.png      the folder is what is shown
imagesTr/a_0000.nii.gz  labelsTr/a.nii.gz             nnU-Net
images/case7/*.dcm      masks/case7.nii.gz            a folder of DICOM slices is one volume where its mask is one
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unimed.files import resolve_inside
from unimed.io.dicom import open_dicom
from unimed.io.dicom_series import is_dicom
from unimed.io.raster import SUFFIXES as IMAGE_SUFFIXES
from unimed.names import without_suffix

#: Words at the end of a mask's name that say what kind of file it is, not what it shows.
PLAIN_ENDS = ("mask", "masks", "seg", "segmentation", "label", "labels", "labelmap", "gt", "groundtruth", "annotation")
#: Names of a column -> what it holds.
COLUMNS = {
    "image": ("image", "img", "file", "filename", "path", "image_path", "volume"),
    "mask": ("mask", "seg", "segmentation", "label_map", "mask_path"),
    "phrase": ("phrase", "name", "target", "structure", "finding"),
    "mask_label": ("mask_label", "value"),
    "class": ("class", "label", "diagnosis", "category"),
    "patient": ("patient", "patient_id", "subject", "subject_id"),
    "split": ("split", "set", "fold"),
    "modality": ("modality",),
    "site": ("site", "anatomy", "body_part"),
    "question": ("question",),
    "answer": ("answer", "report", "caption"),
}
SPLIT_NAMES = {"train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val", "validation": "val",
               "dev": "val", "test": "test", "testing": "test", "ts": "test"}  # fmt: skip


#: Endings of volumes in one file. A DICOM file is taken as one image; a header with its values in a second file is not
#: taken, since the two would have to stay together under new names.
_VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".npz", ".mgz", ".mgh")
_DICOM = (".dcm", ".dicom", ".ima")


class FolderError(ValueError):
    """A folder or table that cannot be turned into records; the message says what to do."""


@dataclass
class MaskFile:
    """A mask: `phrase` is "" where its name does not say what it shows; `value` is one label of a map, if given."""

    path: Path
    phrase: str = ""
    value: int | None = None


@dataclass
class ImageFile:
    """An image with what is known of it; `split`, `patient` are "" where nobody said."""

    path: Path
    key: str
    masks: list[MaskFile] = field(default_factory=list)
    class_name: str = ""
    patient: str = ""
    split: str = ""
    modality: str = ""
    site: str = ""
    texts: list[tuple[str, str]] = field(default_factory=list)


def image_files(folder: Path) -> list[Path]:
    """Images and volumes below a folder, sorted; hidden files are left out.

    Raises:
        FolderError: no such folder, or nothing in it that can be read.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder")
    endings = (*IMAGE_SUFFIXES, *_VOLUMES, *_DICOM)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in files if path.name.lower().endswith(endings) or _is_nameless_dicom(path)]
    if not found:
        raise FolderError(f"{folder}: no image or volume in it; known endings are {', '.join(sorted(endings))}")
    return found


def is_volume(path: Path) -> bool:
    """Whether a path is a volume: a folder of slices, or a file, by its ending."""
    return path.is_dir() or path.name.lower().endswith(_VOLUMES)


def _is_nameless_dicom(path: Path) -> bool:
    """A DICOM file as scanners name them (IM000001, 1.2.840.113619.7); a DICOMDIR is only a list of others."""
    return path.suffix.lower() in ("", *(f".{n}" for n in [path.suffix[1:]] if n.isdigit())) and (
        path.name.upper() != "DICOMDIR" and is_dicom(path)
    )


def dicom_patient(path: Path) -> str:
    """The patient's ID in the header of a DICOM file, or of the first one of a folder; "" where there is none."""
    if path.is_dir():
        path = next((one for one in sorted(path.rglob("*")) if one.is_file() and is_dicom(one)), path)
    if path.is_dir() or not is_dicom(path):
        return ""
    return str(open_dicom(path, pixels=False).get("PatientID") or "").strip()


def _series_folders(images: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Folders below `images` with DICOM files in or below them, by their relative path."""
    folders = {parent for path in paths if is_dicom(path) for parent in path.relative_to(images).parents}
    return {folder.as_posix(): images / folder for folder in sorted(folders) if folder.parts}


def pair(images: Path, masks: Path) -> tuple[list[ImageFile], list[str]]:
    """The images of a folder, each with its masks.

    Returns:
        (images with masks, problems): masks without an image and images without a mask are problems, by name.
    """
    paths = image_files(images)
    keys = {path: without_suffix(path.relative_to(images).as_posix()) for path in paths}
    if all(key.endswith("_0000") for key in keys.values()):
        keys = {path: key.removesuffix("_0000") for path, key in keys.items()}
    elif channels := [path for path, key in keys.items() if re.search(r"_000[1-9]$", key)]:
        if any(key.endswith("_0000") for key in keys.values()):
            raise FolderError(f"{channels[0]}: images of several channels; choose one channel (_0000) per case")
    found: dict[str, ImageFile] = {}
    for path in paths:
        if keys[path] in found:
            raise FolderError(f"{path} and {found[keys[path]].path} have the same name; rename one of them")
        split = SPLIT_NAMES.get(keys[path].split("/")[0].lower(), "") if "/" in keys[path] else ""
        found[keys[path]] = ImageFile(path, keys[path], split=split)
    problems = []
    mask_paths = image_files(masks)
    series = _series_folders(images, paths) if any(is_volume(path) for path in mask_paths) else {}
    for path in mask_paths:
        key = without_suffix(path.relative_to(masks).as_posix())
        owner, phrase = owner_of(key, {**series, **found})
        if owner is None:
            problems.append(f"{path}: no image of its name in {images}; name it as its image, or give --table")
            continue
        if owner not in found:
            split = SPLIT_NAMES.get(owner.split("/")[0].lower(), "") if "/" in owner else ""
            found[owner] = ImageFile(series[owner], owner, split=split)
        found[owner].masks.append(MaskFile(path, phrase))
    taken = [f"{key}/" for key, image in found.items() if image.path.is_dir()]
    for key, image in found.items():
        if not image.masks and not key.startswith(tuple(taken)):
            problems.append(f"{image.path}: no mask of its name in {masks}; an empty mask says that nothing is there")
    return [image for image in found.values() if image.masks], problems


def owner_of(key: str, images: Mapping[str, object]) -> tuple[str | None, str]:
    """(key of the image, phrase) of a mask by its relative path without suffix; (None, "") where there is none."""
    for name, phrase in _readings(key):
        if name in images:
            return name, phrase
    return None, ""


def _readings(key: str) -> Iterable[tuple[str, str]]:
    """Ways to read the name of a mask, the most literal first: the longest name of an image wins."""
    yield key, ""
    folder, _, rest = key.partition("/")
    if rest:
        yield rest, words(folder)
    for prefix, tail in ((f"{key.rpartition('/')[0]}/" if rest else "", key.rpartition("/")[2]),):
        for place in reversed([match.start() for match in re.finditer(r"[_\-. ]", tail)]):
            name, end = tail[:place], words(tail[place + 1 :])
            yield prefix + name, "" if end in PLAIN_ENDS else end
            if rest:  # folder of the phrase, and a plain end
                yield rest[: len(rest) - len(tail)] + name, words(folder)


def words(name: str) -> str:
    """A part of a file name as words: "left_Kidney" -> "left kidney"."""
    return " ".join(re.split(r"[_\-. ]+", name.strip())).lower()


def by_class(images: Path) -> list[ImageFile]:
    """Images in one folder per class, below a folder of the split or not.

    Raises:
        FolderError: an image that lies in no folder.
    """
    found = []
    for path in image_files(images):
        parts = path.relative_to(images).parts
        split = SPLIT_NAMES.get(parts[0].lower(), "") if len(parts) > 2 else ""
        if len(parts) < 2:
            raise FolderError(f"{path}: lies in no folder of a class; put it into {images}/CLASS/")
        name = without_suffix("/".join(parts))
        found.append(ImageFile(path, name, class_name=words(parts[1 if split else 0]), split=split))
    return found


def from_table(table: Path, root: Path) -> list[ImageFile]:
    """Images of a CSV or TSV file; its paths are relative to `root`. Rows of one image are put together.

    Raises:
        FolderError: no column of images, a file that is missing, a row that contradicts another.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
        dialect = csv.Sniffer().sniff(text[:4096], ",;\t") if text.strip() else csv.excel
    except csv.Error:
        dialect = csv.excel
    except FileNotFoundError as error:
        raise FolderError(f"{table}: no such file") from error
    except UnicodeDecodeError as error:
        raise FolderError(f"{table}: is not UTF-8 text ({error}); save it as CSV in UTF-8") from error
    except OSError as error:
        raise FolderError(f"{table}: cannot be read as a table: {error}") from error
    rows = list(csv.DictReader(text.splitlines(), dialect=dialect))
    columns = {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}
    known = {use: columns[name] for use, names in COLUMNS.items() for name in reversed(names) if name in columns}
    if "image" not in known:
        raise FolderError(f"{table}: no column `image`; it has {', '.join(columns) or 'no rows'}")
    found: dict[str, ImageFile] = {}
    for number, row in enumerate(rows, 2):
        value = {use: (row.get(name) or "").strip() for use, name in known.items()}
        where = f"{table}: line {number}"
        path = resolve_inside(root, value["image"], where=where, error=FolderError)
        if not path.is_file() and not (value["image"] and path.is_dir()):
            raise FolderError(f"{where}: {value['image']} is missing in {root}; paths are relative to IMAGES")
        key = without_suffix(value["image"])
        image = found.setdefault(key, ImageFile(path, key))
        if value.get("mask"):
            mask = resolve_inside(root, value["mask"], where=where, error=FolderError)
            if not mask.is_file():
                raise FolderError(f"{where}: {value['mask']} is missing in {root}; paths are relative to IMAGES")
            label = value.get("mask_label") or None
            if label is not None and not label.isdigit():
                raise FolderError(f"{where}: mask_label must be a whole number, got {label!r}")
            image.masks.append(MaskFile(mask, value.get("phrase", ""), None if label is None else int(label)))
        if value.get("answer") and value.get("question"):
            image.texts.append((value["question"], value["answer"]))
        elif value.get("answer"):
            image.texts.append(("Write a report of this image.", value["answer"]))
        split = value.get("split", "")
        if split and split.lower() not in SPLIT_NAMES:
            raise FolderError(f"{where}: split {split!r}; valid are train, val and test")
        stated = {"class_name": value.get("class", ""), "split": SPLIT_NAMES.get(split.lower(), "")}
        stated |= {name: value.get(name, "") for name in ("patient", "modality", "site")}
        _fill(image, where, stated)
    return list(found.values())


def _fill(image: ImageFile, where: str, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        before = getattr(image, name)
        if value and before and before != value:
            raise FolderError(f"{where}: {image.key} is of {name} {value!r} here and of {before!r} above")
        if value:
            setattr(image, name, value)

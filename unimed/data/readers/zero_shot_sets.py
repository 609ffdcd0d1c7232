"""The 21 zero-shot sets of UniMed-CLIP: where labels stand, prompts, and the fingerprints of the published prompts."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from unimed.files import resolve_inside, write_atomic
from unimed.io.images import is_image_file

CATALOG = Path(__file__).parent.parent / "manifests" / "zero_shot_sets.json"


class ZeroShotSetError(ValueError):
    """A set that cannot be read or prompts that are not the published ones; file, line and remedy are named."""


@dataclass(frozen=True)
class ZeroShotSet:
    """One set. `headline` is the metric that counts for it; `overlap` says what of it may have been trained on."""

    id: str
    modality: str
    headline: str
    classes: tuple[Mapping, ...]
    reader: Mapping
    templates: tuple[str, ...]
    published: Mapping
    exceptions: Mapping
    overlap: str = ""
    n: int | None = None
    first_prompt_only_in_reference: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in order; a target is a number in it."""
        return tuple(entry["name"] for entry in self.classes)

    def own_prompts(self) -> dict[str, list[str]]:
        """Prompts that ship with this package. Those of histopathology sets with patterns are the published ones."""
        prompts = {}
        for entry in self.classes:
            phrases = [entry["phrase"]] if "phrase" in entry else entry["own"]
            texts = [template.replace("{}", phrase) for template in self.templates for phrase in phrases]
            for place, text in (self.exceptions.get(entry["key"]) or {}).items():
                texts[int(place)] = text
            prompts[entry["name"]] = texts
        return prompts

    def fingerprint(self, prompts: Sequence[Sequence[str]]) -> str:
        """sha256 over the classes in order, as `published["set_sha256"]` was made."""
        lines = [
            f"{entry['key']}\x1f{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()}\n"
            for entry, texts in zip(self.classes, prompts, strict=True)
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def is_published(self, prompts: Mapping[str, Sequence[str]]) -> bool:
        """Whether these are the published prompts, to the byte."""
        known = [prompts.get(name, ()) for name in self.names]
        return self.fingerprint(known) == self.published["set_sha256"]


@cache
def catalog() -> dict[str, ZeroShotSet]:
    """All sets by id, in the published order."""
    entries = json.loads(CATALOG.read_text(encoding="utf-8"))["sets"]
    return {
        entry["id"]: ZeroShotSet(
            **{
                "exceptions": {},
                **entry,
                "classes": tuple(entry["classes"]),
                "templates": tuple(entry["templates"]),
            }
        )
        for entry in entries
    }


def chosen(ids: Sequence[str] | None) -> list[ZeroShotSet]:
    """Sets by id; all if None.

    Raises:
        ZeroShotSetError: an unknown id.
    """
    known = catalog()
    unknown = [name for name in ids or () if name not in known]
    if unknown:
        raise ZeroShotSetError(f"no set is called {unknown[0]!r}; known are {', '.join(known)}")
    return [known[name] for name in ids or known]


def read_set(one: ZeroShotSet, root: str | Path) -> tuple[list[Path], list[int]]:
    """Image files and class numbers of a set in the user's folder.

    Args:
        root: the folder of this set.

    Raises:
        ZeroShotSetError: a file or folder is missing, a label is unknown, or nothing is there.
    """
    root, reader = Path(root), one.reader
    folder = root / reader["folder"] if reader.get("folder") and (root / reader["folder"]).is_dir() else root
    if not folder.is_dir():
        raise ZeroShotSetError(f"{one.id}: the folder {folder} is not there")
    kind = {"folders": _folders, "file_name": _file_names, "one_hot": _one_hot, "csv": _csv}[reader["kind"]]
    paths, targets = kind(one, folder, reader)
    if not paths:
        raise ZeroShotSetError(f"{one.id}: {folder} holds no image of the set")
    if one.n is not None and len(paths) != one.n:
        print(f"{one.id}: {len(paths)} images, the published set has {one.n}")
    return paths, targets


def _folders(one, folder, reader):
    paths, targets = [], []
    for number, name in enumerate(reader["folders"]):
        if not (folder / name).is_dir():
            raise ZeroShotSetError(f"{one.id}: the folder {folder / name} is not there")
        files = _images_below(one, folder, folder / name)
        paths += files
        targets += [number] * len(files)
    return paths, targets


def _images_below(one, root: Path, folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if is_image_file(p))
    return [resolve_inside(root, p.relative_to(root), where=one.id, error=ZeroShotSetError) for p in found]


def _file_names(one, folder, reader):
    """Class number between the first underscore and the next dot."""
    paths, targets = _images_below(one, folder, folder), []
    for path in paths:
        number = path.name.partition("_")[2].partition(".")[0]
        if not number.isdigit() or int(number) >= len(one.classes):
            raise ZeroShotSetError(f"{one.id}: no class number stands in the name of {path}")
        targets.append(int(number))
    return paths, targets


def _one_hot(one, folder, reader):
    paths, targets = [], []
    for line, row, _ in _rows(one, folder / reader["file"]):
        try:
            values = [float(row[name]) for name in one.names]
        except (KeyError, ValueError) as error:
            raise ZeroShotSetError(
                f"{folder / reader['file']}:{line}: column {error} is missing or no number"
            ) from error
        paths.append(_image(one, folder, row[reader["path"]], f"{folder / reader['file']}:{line}"))
        targets.append(values.index(max(values)))
    return paths, targets


def _csv(one, folder, reader):
    file, paths, targets = folder / reader["file"], [], []
    values, where = reader["values"], reader.get("where") or {}
    with_head = reader.get("header", True)
    for line, row, cells in _rows(one, file, with_head):
        if any(row.get(name) != value for name, value in where.items()):
            continue
        place = f"{file}:{line}"
        try:
            name, label = cells[reader["path"]], cells[reader["label"]].strip()
        except IndexError as error:
            raise ZeroShotSetError(f"{place}: {len(cells)} columns are too few") from error
        if reader.get("list"):
            try:
                label = str(ast.literal_eval(label)[0])
            except (ValueError, SyntaxError, IndexError, TypeError) as error:
                raise ZeroShotSetError(f"{place}: {label!r} is no list with one class name") from error
        if values == "index":
            number = int(float(label)) if label.replace(".", "", 1).isdigit() else -1
        else:
            number = values.index(label) if label in values else -1
        if not 0 <= number < len(one.classes):
            if not with_head and line == 1:
                continue  # a head after all
            raise ZeroShotSetError(f"{place}: label {label!r} is none of the {len(one.classes)} classes of {one.id}")
        name = reader.get("image", "{path}").format(path=name, label=label)
        paths.append(_image(one, folder, name, place))
        targets.append(number)
    return paths, targets


def _rows(one, file: Path, with_head: bool = True):
    if not file.is_file():
        raise ZeroShotSetError(f"{one.id}: {file} is not there")
    with open(file, encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        head = next(reader, []) if with_head else []
        for cells in reader:
            if cells:
                yield reader.line_num, dict(zip(head, cells, strict=False)), cells


def _image(one, folder: Path, name: str, place: str) -> Path:
    path = resolve_inside(folder, name.lstrip("/"), where=place, error=ZeroShotSetError)
    if not path.is_file():
        raise ZeroShotSetError(f"{place}: the image {path} is not there")
    return path


def import_prompts(constants: str | Path, out: str | Path) -> dict[str, str]:
    """Take the published prompts out of a user's own copy of the reference's file of constants; nothing in it is run.

    Writes `{set id: {class name: prompts}}` to `out` for those sets whose fingerprint fits.

    Returns:
        set id -> "published", or what is wrong with it.

    Raises:
        ZeroShotSetError: the file cannot be read as Python, or not a single set fits.
    """
    path = Path(constants)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ZeroShotSetError(f"{path}: cannot be read as a Python file ({error})") from error
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, SyntaxError, RecursionError):
                continue  # made by code, which is not run
    prompts, states = {}, {}
    for one in catalog().values():
        value = found.get(one.published["variable"])
        if not isinstance(value, dict):
            states[one.id] = f"{one.published['variable']} is not in the file"
            continue
        missing = [entry["key"] for entry in one.classes if entry["key"] not in value]
        if missing:
            states[one.id] = f"class {missing[0]!r} is missing in {one.published['variable']}"
            continue
        mine = {entry["name"]: [str(t) for t in value[entry["key"]]] for entry in one.classes}
        if not one.is_published(mine):
            states[one.id] = f"{one.published['variable']} was changed: its fingerprint is not the published one"
            continue
        prompts[one.id], states[one.id] = mine, "published"
    if not prompts:
        raise ZeroShotSetError(f"{path}: no prompts of the 21 sets are in it")
    text = json.dumps(prompts, indent=1, ensure_ascii=False)
    write_atomic(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return states

"""Images to be labelled and the labels of one owner: kept on disk until they are deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from unimed.files import json_text, read_json, resolve_inside, write_atomic, write_text
from unimed.inference.asking import Source, find_sources
from unimed.names import distinct_names, without_suffix
from unimed.serve.core import Core
from unimed.serve.problems import Problem, missing
from unimed.serve.store import Stored

#: The tag of labels that a person has submitted, and of those that a model drew.
FINAL, ORIGINAL = "final", "original"
#: How files of labels end.
LABEL_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".png")
_NAME = re.compile(r"[A-Za-z0-9][\w.\- ]{0,127}")
_LISTED_S = 5.0


class Datastore:
    """Images and labels of one owner.

    Images are uploads, kept here, and the sources below the server's `root`, which are never written to; both have one
    name. Labels carry a tag, `FINAL` where a person submitted them.

    Args:
        folder: of the owner; made where it is not there.
        series: owner and UID of a DICOM series -> the folder or file that holds it, or None; OHIF names images so.
    """

    def __init__(
        self, folder: Path, owner: str, root: Path | None, most_bytes: int,
        series: Callable[[str, str], Path | None] = lambda owner, uid: None,
    ):  # fmt: skip
        self.folder, self.owner, self.root, self.most, self.series = folder, owner, root, most_bytes, series
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._file = folder / "datastore.json"
        held = read_json(self._file) if self._file.is_file() else {}
        self._infos: dict[str, dict] = held.get("images", {})
        self._labels: dict[str, dict[str, dict]] = held.get("labels", {})
        self._listed: tuple[float, dict[str, Path]] = (-_LISTED_S, {})
        self._digests: dict[tuple, str] = {}

    # -- images -------------------------------------------------------------------------------------------------
    def images(self) -> dict[str, Path]:
        """{name: path} of all images, sorted."""
        found = {without_suffix(path.name): path for path in sorted((self.folder / "images").iterdir())}
        return dict(sorted((self._in_root() | found).items()))

    def _in_root(self) -> dict[str, Path]:
        if self.root is None:
            return {}
        with self._lock:
            if time.monotonic() - self._listed[0] > _LISTED_S:
                base = os.path.realpath(self.root)
                paths = []
                with contextlib.suppress(FileNotFoundError):
                    paths = [p for p in find_sources([self.root]) if _within(base, p)]
                names = distinct_names(_plain(p.relative_to(self.root)) for p in paths)
                listed = {_as_name(names[_plain(p.relative_to(self.root))]): p for p in paths}
                self._listed = (time.monotonic(), listed)
            return self._listed[1]

    def path(self, name: str) -> Path:
        """Raises Problem 404 for a name that no image has."""
        with contextlib.suppress(KeyError):
            return self.images()[without_suffix(name)]
        found = self.series(self.owner, name)
        if found is None:
            raise missing("image", name)
        return found

    def choices(self, name: str) -> dict[str, str]:
        """What `Core.open` is told of an image: which series of its folder is meant."""
        named = without_suffix(name) in self.images()
        return {} if named or self.path(name).is_file() else {"series": name}

    def stored(self, name: str) -> Stored:
        """An image as the doors open it."""
        path = self.path(name)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        stats = tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
        digest = hashlib.sha256(repr((name, str(path), stats)).encode()).hexdigest()
        return Stored(digest, self.owner, path, digest, sum(size for _, size, _ in stats), time.time())

    def opened(self, core: Core, name: str, model: str | None = None, **how) -> Source:
        """What an image holds; see `Core.open`."""
        return core.open(self.stored(name), model, **self.choices(name), **how)

    def put_image(self, name: str, file_name: str, content: bytes) -> str:
        """Keep an upload under a name (by default that of the file); returns the name.

        Raises:
            Problem: 400, no usable name, or that of a file of the server; 413, more than the owner may keep.
        """
        suffix = _suffix(file_name) or _suffix(name)
        name = _name(without_suffix(name) or without_suffix(Path(file_name.replace("\\", "/")).name))
        if not suffix:
            raise Problem(400, "the image has a suffix that nobody reads here", param="file")
        if name in self._in_root():
            raise Problem(400, f"{name} is a file of the server; choose another name", param="image")
        self._room(len(content))
        with self._lock:
            for old in (self.folder / "images").glob("*"):
                if without_suffix(old.name) == name:
                    old.unlink()
            _write(self.folder / "images" / f"{name}{suffix}", content)
            self._infos[name] = {"ts": int(time.time())}
            self._save()
        return name

    def delete_image(self, name: str) -> None:
        """Delete an upload and its labels; of a file of the server the labels alone."""
        name = without_suffix(name)
        path = self.path(name)
        with self._lock:
            if path.parent == self.folder / "images":
                path.unlink(missing_ok=True)
            for tag in list(self._labels.get(name, {})):
                self.delete_label(name, tag)
            self._infos.pop(name, None)
            self._save()

    # -- labels -------------------------------------------------------------------------------------------------
    def labels(self, tag: str = FINAL) -> dict[str, Path]:
        """{image: path of its label}."""
        with self._lock:
            return {name: self.label(name, tag) for name, tags in self._labels.items() if tag in tags}

    def label(self, image: str, tag: str = FINAL) -> Path:
        """Raises Problem 404 where there is none."""
        image = without_suffix(image)
        entry = self._labels.get(image, {}).get(tag)
        if entry is None:
            raise missing("label", image)
        return resolve_inside(self.folder, f"labels/{tag}/{image}{entry['ext']}")

    def put_label(self, image: str, tag: str, suffix: str, content: bytes, info: dict) -> str:
        """Keep a label; returns the name of its image.

        Raises:
            Problem: 404, no such image; 400, a tag that is no plain name, or a suffix that is no label map; 413.
        """
        self.path(image)
        image, tag = _name(without_suffix(image)), _name(tag or FINAL)
        if suffix not in LABEL_SUFFIXES:
            raise Problem(400, f"a label is NIfTI, NRRD or PNG, not {suffix[:20] or 'a file without suffix'}",
                          param="label")  # fmt: skip
        self._room(len(content))
        with self._lock:
            if tag in self._labels.get(image, {}):
                self.label(image, tag).unlink(missing_ok=True)
            place = self.folder / "labels" / tag
            place.mkdir(exist_ok=True, mode=0o700)
            _write(place / f"{image}{suffix}", content)
            self._labels.setdefault(image, {})[tag] = {"ext": suffix, "info": {"ts": int(time.time()), **info}}
            self._save()
        return image

    def delete_label(self, image: str, tag: str) -> None:
        with self._lock:
            self.label(image, tag).unlink(missing_ok=True)
            tags = self._labels[without_suffix(image)]
            del tags[tag]
            if not tags:
                del self._labels[without_suffix(image)]
            self._save()

    # -- what is known of them ----------------------------------------------------------------------------------
    def info(self, image: str, tag: str = "") -> dict:
        """What is known of an image, or of its label with a tag."""
        image = without_suffix(image)
        if tag:
            self.label(image, tag)
            return self._labels[image][tag]["info"]
        self.path(image)
        return self._infos.get(image, {})

    def note(self, image: str, values: dict, tag: str = "") -> None:
        """Add to what is known.

        Raises:
            Problem: 413, more than 20000 characters.
        """
        if len(json.dumps(values)) > 20_000:
            raise Problem(413, "an info holds at most 20000 characters", param="info")
        with self._lock:
            known = self.info(image, tag)
            if not tag:
                known = self._infos.setdefault(without_suffix(image), known)
            known.update(values)
            self._save()

    def unlabeled(self) -> list[str]:
        """Images without a submitted label."""
        done = self.labels(FINAL)
        return [name for name in self.images() if name not in done]

    def names(self) -> list[str]:
        """Names of labels in what was submitted, in the order in which they first appear."""
        found: list[str] = []
        for _, tags in sorted(self._labels.items()):
            for entry in tags.get(FINAL, {}).get("info", {}).get("label_info") or ():
                if isinstance(entry, dict) and (name := str(entry.get("name", "")).strip()[:200]):
                    found.append(name)
        return list(dict.fromkeys(found))

    def status(self) -> dict:
        """Counts, as MONAI Label gives them."""
        tags: dict[str, int] = {}
        for entry in self._labels.values():
            for tag in entry:
                tags[tag] = tags.get(tag, 0) + 1
        return {"total": len(self.images()), "completed": len(self.labels(FINAL)), "label_tags": tags}

    def objects(self) -> dict:
        """Every image with its labels, as MONAI Label lists them; no path."""
        return {
            name: {
                "image": {"ext": path.name[len(without_suffix(path.name)) :], "info": self._infos.get(name, {})},
                "labels": self._labels.get(name, {}),
            }
            for name, path in self.images().items()
        }  # fmt: skip

    def _room(self, size: int) -> None:
        kept = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        if kept + size > self.most:
            raise Problem(413, f"{kept} bytes are kept for you, at most {self.most}; delete some")

    def _save(self) -> None:
        write_text(self._file, json_text({"owner": self.owner, "images": self._infos, "labels": self._labels}))


class Datastores:
    """The datastores of all owners; adapters that were trained from their labels lie beside them."""

    def __init__(self, folder: Path, root: Path | None, most_bytes: int, series=lambda owner, uid: None):
        self.folder, self.root, self.most, self.series = folder, root, most_bytes, series
        self._lock = threading.Lock()
        self._known: dict[str, Datastore] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def of(self, owner: str) -> Datastore:
        with self._lock:
            if owner not in self._known:
                place = self.folder / hashlib.sha256(owner.encode()).hexdigest()[:32]
                place.mkdir(exist_ok=True, mode=0o700)
                write_text(place / "owner.json", json_text({"owner": owner}))
                self._known[owner] = Datastore(place, owner, self.root, self.most, self.series)
            return self._known[owner]

    def owners(self) -> list[str]:
        """Owners that have one, of earlier servers too."""
        return [read_json(path)["owner"] for path in sorted(self.folder.glob("*/owner.json"))]


def _plain(path: Path) -> str:
    return path.as_posix()


def _as_name(text: str) -> str:
    return without_suffix(text).replace("/", "-")


def _within(base: str, path: Path) -> bool:
    real = os.path.realpath(path)
    return real == base or real.startswith(base.rstrip(os.sep) + os.sep)


def _suffix(name: str) -> str:
    name = Path(name.replace("\\", "/")).name
    return name[len(without_suffix(name)) :].lower()


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise Problem(400, "a name has 1 to 128 letters, digits, dots, dashes and blanks", param="image")
    return text


def _write(path: Path, content: bytes) -> None:
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def remove(folder: Path, keep: Sequence[Path] = ()) -> None:
    """Delete what lies in a folder, but what is to be kept."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)

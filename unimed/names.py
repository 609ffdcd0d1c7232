"""Names of results: readable, stable, inside their folder, and never shared by two sources."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

#: What the files of a result end in.
RESULT_SUFFIXES = (".json", ".jsonl", ".png", ".nii.gz", ".nrrd", ".npz", ".seg.dcm", ".html", ".sr.dcm")
#: What a name loses in front of a result's own suffix: endings of images and volumes, longest first.
SOURCE_SUFFIXES = (
    ".nii.gz", ".img.gz", ".hdr.gz", ".nrrd.gz", ".dicom", ".jpeg", ".tiff", ".nrrd", ".nhdr", ".webp", ".nii", ".mgz",
    ".mgh", ".mha", ".mhd", ".img", ".hdr", ".npz", ".npy", ".dcm", ".ima", ".png", ".jpg", ".jp2", ".j2k", ".tif",
    ".bmp", ".gif",
)  # fmt: skip
#: Names that Windows keeps for devices.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
#: Longest name in bytes; file systems take 255 for a name with its suffix.
MAX_BYTES = 160
#: Further files of a result are called by its name and one of these.
FURTHER = ("-mask", "-found", "-instances")


def without_suffix(name: str) -> str:
    """A file name without the ending of an image or volume; other dots stay ("1.2.840.1.dcm" is "1.2.840.1")."""
    lower = name.lower()
    end = next((end for end in SOURCE_SUFFIXES if lower.endswith(end) and len(name) > len(end)), "")
    return name[: len(name) - len(end)]


def safe_name(text: str) -> str:
    """`text` as a file name on any system: letters of all alphabets stay; separators, control and reserved characters
    become "_"; names too long are cut and end in eight digits of what was cut."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(sign) == "Zs" else sign for sign in text)
    name = "".join(sign if sign.isprintable() and sign not in '/\\<>:"|?*' else "_" for sign in text).rstrip(" .")
    name = re.sub(r"^[.\s]+", "_", name)
    if name.partition(".")[0].lower() in _DEVICES:
        name = f"_{name}"
    if len(name.encode()) > MAX_BYTES:
        cut = name.encode()[: MAX_BYTES - 9].decode(errors="ignore").rstrip(" .")
        name = f"{cut}-{_digest(text)[:8]}"
    return name or "image"


def result_name(source: str | os.PathLike, root: str | os.PathLike | None = None) -> str:
    """The plain name of a source's results: its file name without suffix, below `root` with "-" between folders.

    Two sources may have one plain name (`a.png`, `a.dcm`, `A.png`); `ResultNames` tells them apart.
    """
    path = Path(source)
    if root is not None and path != Path(root):
        try:
            path = path.relative_to(root)
        except ValueError:
            path = Path(path.name)
        return safe_name("-".join((*path.parts[:-1], without_suffix(path.name))))
    return safe_name(without_suffix(path.name or "image"))


def same_on_disk(name: str) -> str:
    """What two names share that some file system takes for one: upper and lower case, and forms of Unicode."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def distinct_names(files: Iterable[str]) -> dict[str, str]:
    """{file: name} for files of a published layout: the stem; the path without suffix where stems meet; else the path.

    Names differ on every file system.
    """
    files = list(dict.fromkeys(map(str, files)))
    forms = (lambda file: Path(file).stem, lambda file: str(Path(file).with_suffix("")), str)
    chosen: dict[str, str] = {}
    left = files
    for form in forms:
        counts: dict[str, int] = {}
        for file in files:
            key = same_on_disk(form(file))
            counts[key] = counts.get(key, 0) + 1
        taken = {same_on_disk(name) for name in chosen.values()}
        for file in left:
            if counts[same_on_disk(form(file))] == 1 and same_on_disk(form(file)) not in taken:
                chosen[file] = form(file)
        left = [file for file in left if file not in chosen]
    for file in left:  # paths that only differ in case or in their form of Unicode
        chosen[file] = f"{file}-{_digest(file)[:8]}"
    return {file: chosen[file] for file in files}


#: Real path of a folder -> {source: name} that this process gave there.
_given: dict[str, dict[str, str]] = {}
#: Folders in which something was seen.
_filled: set[str] = set()


def source_of(folder: str | os.PathLike, name: str) -> str:
    """Digest of the source whose results this process calls `name` in `folder`; "" where it gave no such name.

    Results keep it (`source_id`), so that later runs know whose name it is; it tells neither path nor content.
    """
    given = _given.get(os.path.realpath(folder), {})
    return next((source for source, other in given.items() if other == name), "")


def forget_names(folder: str | os.PathLike) -> None:
    """Drop what this process knows of the names in a folder where it works no more."""
    _given.pop(os.path.realpath(folder), None)
    _filled.discard(os.path.realpath(folder))


class ResultNames:
    """Gives each source a name of its own among the results in a folder, the same at every call.

    A name is the plain one of `result_name` where that is free; else it tells more: the suffix, the folders above, at
    last eight digits. A name is free where no result bears it, or only one of the same source does (`source_id` in its
    JSON or in the `cases.jsonl` of a run); files of unknown origin are never replaced.

    Args:
        folder: of the results; it need not be there.
        root: sources below it are named by their place below it.
    """

    def __init__(self, folder: str | os.PathLike, root: str | os.PathLike | None = None):
        self.folder, self.root = Path(folder), None if root is None else Path(root)

    def __call__(self, source: str | os.PathLike | bytes, variant: str = "", called: str = "") -> str:
        """The name of the results of a source.

        Args:
            source: a path, or the digest of an image that has none (bytes).
            variant: tells several results of one source apart, such as the number of a question.
            called: a name that the user gave, in place of the plain one.
        """
        return self.all([source], variant, called)[0]

    def all(self, sources: Iterable[str | os.PathLike | bytes], variant: str = "", called: str = "") -> list[str]:
        """Names of several sources, in their order; plain names go to the first of a kind."""
        place = os.path.realpath(self.folder)
        given = _given.setdefault(place, {})
        listed = os.listdir(self.folder) if self.folder.is_dir() else []
        if listed:
            _filled.add(place)
        elif place in _filled:
            given.clear()  # the folder was emptied, or removed and made anew
        known = self._of_runs() | given
        taken = {same_on_disk(name): source for source, name in known.items()}
        there = {same_on_disk(name): name for name in listed}
        names = []
        for source in sources:
            identity = _identity(source, f"{variant}\0{called}" if called else variant)
            if identity not in known:
                for name in self._candidates(source, variant, called, identity):
                    if self._is_free(name, identity, variant, taken, there):
                        break
                known[identity] = name
                taken[same_on_disk(name)] = identity
            given[identity] = known[identity]
            names.append(known[identity])
        return names

    def _of_runs(self) -> dict[str, str]:
        """{source: name} of the cases that an earlier run finished here."""
        found = {}
        with contextlib.suppress(OSError):
            for line in (self.folder / "cases.jsonl").read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    found[str(row["source_id"])] = str(row["case"])
        return found

    def _is_free(self, name, identity, variant, taken, there) -> bool:
        folded = same_on_disk(name)
        if folded in taken:
            return False
        if not variant and any(_run_together(folded, other) or _run_together(other, folded) for other in taken):
            return False
        held = [there[folded + end] for end in RESULT_SUFFIXES if folded + end in there]
        if not held:
            return True
        try:
            found = json.loads((self.folder / f"{name}.json").read_bytes())
            return isinstance(found, dict) and found.get("source_id") == identity
        except (OSError, ValueError):
            return False

    def _candidates(self, source, variant, called, identity):
        end = f"-{variant}" if variant else ""
        if called:
            yield safe_name(called + end)
        elif isinstance(source, bytes):
            yield f"image-{source.hex()[:8]}{end}"
        else:
            path = Path(source)
            yield safe_name(result_name(path, self.root) + end)
            yield safe_name(path.name + end)
            folders = Path(os.path.abspath(path)).parts[1:-1]
            for depth in range(1, min(3, len(folders)) + 1):
                yield safe_name("-".join((*folders[-depth:], without_suffix(path.name))) + end)
        plain = called or ("image" if isinstance(source, bytes) else result_name(source, self.root))
        for length in (8, 16, 32):
            yield f"{safe_name(plain[:80])}-{identity[:length]}{end}"


def _run_together(name: str, other: str) -> bool:
    """Is `other` what a further file of the result `name` may be called?"""
    return other.startswith(tuple(name + part for part in FURTHER)) or (
        other.startswith(f"{name}-") and other[len(name) + 1 :].isdigit()
    )


def _identity(source, variant: str) -> str:
    if not isinstance(source, bytes):
        source = os.path.realpath(source).encode("utf-8", "surrogateescape")
    return hashlib.sha256(source + b"\0" + variant.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""Names of results: readable, stable, inside their folder, and never shared by two sources."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

#: What the files of a result end in.
RESULT_SUFFIXES = (".json", ".jsonl", ".png", ".nii.gz", ".npz", ".seg.dcm", ".html", ".sr.dcm")
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
INDEX = ".names.jsonl"
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


class ResultNames:
    """Gives each source a name of its own among the results in a folder, the same at every call.

    A name is the plain one of `result_name` where that is free; else it tells more: the suffix, the folders above, at
    last eight digits. What is given is kept in the folder (`.names.jsonl`: name and a digest of the source, no path),
    so that a later run over other sources does not take it. A file that is there already and was not named here is not
    replaced.

    Args:
        folder: of the results; made when the first name is given.
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
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / INDEX, "a+b") as stream:
            _lock(stream)
            stream.seek(0)
            known, taken = {}, set()
            for line in stream.read().split(b"\n"):
                try:
                    row = json.loads(line)
                    known[row["source"]], _ = row["name"], taken.add(same_on_disk(row["name"]))
                except (ValueError, KeyError, TypeError):
                    continue  # half a line of a killed run
            there = {same_on_disk(name) for name in os.listdir(self.folder)}
            return [self._name(source, variant, called, known, taken, there, stream) for source in sources]

    def _name(self, source, variant, called, known, taken, there, stream) -> str:
        identity = _identity(source, f"{variant}\0{called}" if called else variant)
        if identity in known:
            return known[identity]
        for name in self._candidates(source, variant, called, identity):
            folded = same_on_disk(name)
            clash = any(_run_together(folded, other) or _run_together(other, folded) for other in taken)
            if folded not in taken and not clash and not any(folded + end in there for end in RESULT_SUFFIXES):
                break
        known[identity] = name
        taken.add(folded)
        stream.write(b"\n" * bool(stream.tell()) + json.dumps({"name": name, "source": identity}).encode())
        stream.flush()
        return name

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
    return other.startswith(tuple(name + part for part in FURTHER))


def _identity(source, variant: str) -> str:
    if not isinstance(source, bytes):
        source = os.path.realpath(source).encode("utf-8", "surrogateescape")
    return hashlib.sha256(source + b"\0" + variant.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _lock(stream) -> None:
    """Processes that name results in one folder take turns, where the file system knows how."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass

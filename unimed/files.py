"""Files and folders that appear whole or not at all, one writer per folder, and paths that stay inside their folder."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from unimed.locks import FolderInUseError, FolderLock, is_running, this_machine  # noqa: F401
from unimed.markup import without_surrogates
from unimed.names import RESULT_SUFFIXES, ResultNames, result_name  # noqa: F401

#: Variable with the folder of downloads, converted models and indices.
CACHE_VARIABLE = "UNIMED_CACHE"
#: Variable with further folders (joined by ":") that files named in data may lie in.
ROOTS_VARIABLE = "UNIMED_DATA_ROOTS"

# ---------------------------------------------------------------------------------------------------------------------
# Atomic files and folders
# ---------------------------------------------------------------------------------------------------------------------

#: Unfinished files and folders: this, the place and number of the process that writes them, and chance.
_UNFINISHED = re.compile(r"\.unfinished-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}(-.*|\..*)?", re.DOTALL)
#: Unfinished files of other machines are left-overs once nobody has touched them for so long.
_LEFT_OVER_S = 24 * 3600
#: A folder that is being replaced; where its place stands empty it is put back, not removed.
_PREVIOUS = "-previous-"
_cleaned: set[tuple[str, int]] = set()
#: No space, quota, limit of size, read-only: matters of the disk, the same for the next file.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def is_of_the_disk(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full or read-only disk, a quota or a limit of size."""
    seen: set[int] = set()  # causes and contexts may go round in a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def write_atomic(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path in the folder of `path`, then rename it to `path` in one step.

    The temporary name keeps the suffix, because several libraries choose the format by it. If `write` raises, the
    temporary file is removed and what was at `path` before is still there. The file has the permissions of any new
    file (umask), whatever `write` did to them. What killed processes left in the folder is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(path.parent)
    temporary = path.parent / _unfinished_name(
        "".join(path.suffixes[-2:]) if len(path.name) < 100 else path.suffix[:20]
    )
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def atomic_folder(destination: str | Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `destination` if nothing is raised, and is removed otherwise.

    Folders and files get the permissions of any new ones (umask): several libraries write files only their owner reads.

    Args:
        replace: put it in the place of a folder that is there; that one is removed after the new one stands.

    Raises:
        FileExistsError: `destination` holds something already and `replace` is False.
    """
    destination = Path(destination)
    if not replace:
        _refuse_content(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(destination.parent)
    temporary = destination.parent / _unfinished_name(f"-{destination.name}"[:80])
    temporary.mkdir()
    mode = temporary.stat().st_mode & 0o777
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            os.chmod(folder, mode)
            for name in names:
                if not os.path.islink(file := os.path.join(folder, name)):
                    os.chmod(file, mode & 0o666)
        if replace and destination.exists():
            previous = destination.parent / _unfinished_name(f"{_PREVIOUS}{destination.name}")
            os.replace(destination, previous)
            os.replace(temporary, destination)
            shutil.rmtree(previous, ignore_errors=True)
            return
        try:
            os.replace(temporary, destination)
        except OSError:
            _refuse_content(destination)  # another process was quicker
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def unfinished_file(folder: Path) -> Iterator[Path]:
    """An empty temporary file in a folder, to be renamed to its name; it is removed if it is still there at the end."""
    place = folder / _unfinished_name("")
    place.touch(exist_ok=False)
    try:
        yield place
    finally:
        place.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: str | Path) -> Iterator[Path]:
    """A temporary folder in `parent`, whose parts are renamed to where they belong; it is removed at the end."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(parent)
    temporary = parent / _unfinished_name("")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_content(destination: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} is already there; choose another name or remove it")


def _unfinished_name(end: str) -> str:
    return f".unfinished-{this_machine()}-{os.getpid()}-{secrets.token_hex(4)}{end}"


def remove_left_overs(folder: str | Path) -> list[Path]:
    """Remove what killed processes left unfinished in a folder; each process looks once per folder.

    A file or folder is a left-over where the process that wrote it no longer runs on this machine, or where it is of
    another machine and was not touched for a day.

    Returns:
        what was removed.
    """
    folder = Path(folder)
    key = (str(folder.absolute()), os.getpid())
    if key in _cleaned:
        return []
    _cleaned.add(key)
    removed = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _UNFINISHED.fullmatch(entry.name)
            if found is None:
                continue
            with contextlib.suppress(OSError):
                if found[1] == this_machine():
                    left = not is_running(int(found[2]))
                else:
                    left = time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFT_OVER_S
                if left:
                    end = found[3] or ""
                    place = folder / end.removeprefix(_PREVIOUS)
                    if end.startswith(_PREVIOUS) and not place.exists():
                        os.replace(entry.path, place)
                        continue
                    removed.append(Path(entry.path))
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)
    return removed


def share(path: Path) -> None:
    """Give a file the permissions any new file gets: safetensors and tempfile write files that only the owner reads."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)  # no other way to ask; files of other threads are at worst too private for a moment
    os.umask(mask)
    return mask


def cache_folder(*names: str) -> Path:
    """`$UNIMED_CACHE`, else `~/.cache/unimed`; `names` are folders below it. Nothing is made."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "unimed").joinpath(*names)


# ---------------------------------------------------------------------------------------------------------------------
# Paths that stay inside their folder
# ---------------------------------------------------------------------------------------------------------------------


def resolve_inside(
    root: str | Path,
    name: str | os.PathLike,
    *,
    where: str = "",
    roots: Sequence[str | Path] = (),
    error: type[Exception] = ValueError,
) -> Path:
    """The path of a file that data name, inside the folder of the data with all links resolved.

    Args:
        root: folder that relative names start from.
        name: what a record, a table or a header says; it need not exist.
        where: file and record that name it, for messages.
        roots: further folders that absolute names and links may lead to, because the user named them; so do those in
            `$UNIMED_DATA_ROOTS` (joined by ":").
        error: what is raised.

    Returns:
        `root / name` as it was written (links are looked through, not replaced).

    Raises:
        ValueError: the name is empty or absolute or has "..", or what it leads to lies outside.
    """
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else ""
    where = where and f"{where}: "
    if not text or "\0" in text:
        raise error(f"{where}{name!r} is not the name of a file in {root}")
    named = [*roots, *(part for part in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if part)]
    parts = text.replace("\\", "/").split("/")
    outside = os.path.isabs(text) or ".." in parts or text.startswith("\\") or re.match(r"[A-Za-z]:[\\/]", text)
    remedy = f"name files relative to it, or name their folder in {ROOTS_VARIABLE}"
    if outside and not named:
        raise error(f"{where}{text!r} leads out of the data folder {root}; {remedy}")
    path = Path(root, text)
    allowed = named if outside else [root, *named]
    try:
        real = os.path.realpath(path)
        inside = any(_lies_in(real, os.path.realpath(place)) for place in allowed)
    except (OSError, ValueError) as problem:
        raise error(f"{where}{text[:200]!r} is not the name of a file in {root} ({problem})") from problem
    if not inside:
        raise error(f"{where}{text!r} leads out of the data folder {root}; {remedy}")
    return path


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


# ---------------------------------------------------------------------------------------------------------------------
# Lines of JSON, text, reports
# ---------------------------------------------------------------------------------------------------------------------


def read_json_lines(
    path: str | Path, *, error: type[Exception] = ValueError, torn_end: bool = False
) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of every line of a JSON lines file that is not blank.

    A line ends at a line feed and nowhere else, so that texts may hold U+2028, U+2029 and U+0085; a byte order mark at
    the start is no part of it.

    Args:
        error: what is raised.
        torn_end: leave out a last line without line feed that is not whole, as a killed process leaves it.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not UTF-8 or not a JSON object; file and line are named.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as problem:
                if torn_end and not line.endswith(b"\n"):
                    return
                message = problem.msg if isinstance(problem, json.JSONDecodeError) else str(problem)
                raise error(f"{path}:{number}: not JSON ({message})") from None
            if not isinstance(value, dict):
                raise error(f"{path}:{number}: expected one JSON object per line, got {type(value).__name__}")
            yield number, value


def read_json(path: str | Path, *, error: type[Exception] = ValueError):
    """The content of a JSON file; a byte order mark is no part of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8 or not JSON; the file is named (`error`).
    """
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not JSON ({problem})") from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file that are not blank; they end at line feeds, and a byte order mark is left out."""
    text = Path(path).read_bytes().decode("utf-8-sig")
    return [line.strip() for line in text.split("\n") if line.strip()]


def json_line(value) -> str:
    """An object as one line of JSON with its line feed; NaN becomes null."""
    return _dumped(plain(value)) + "\n"


def json_text(value, indent: int = 0) -> str:
    """JSON for people and files: a line per field, but a list of numbers or texts on a line of its own."""
    if isinstance(value, Mapping) and value:
        inner = " " * (indent + 1)
        fields = (f"{inner}{_dumped(str(key))}: {json_text(item, indent + 1)}" for key, item in value.items())
        return "{\n" + ",\n".join(fields) + "\n" + " " * indent + "}"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        inner = " " * (indent + 1)
        return "[\n" + ",\n".join(inner + json_text(item, indent + 1) for item in value) + "\n" + " " * indent + "]"
    return _dumped(value)


def _dumped(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8; as an escape it is read back as it was
        text = json.dumps(value)
    return text


def append_json_line(path: str | Path, row, sync: bool = True) -> None:
    """Add one object to a file of JSON lines, on disk when this returns.

    What a killed process left of a last line is cut off first, so that the new one stands on its own.

    Args:
        sync: False leaves it to the system when it is on the disk; then a kill loses nothing, a power cut may.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                _end_line(stream, size)
        stream.write(json_line(row).encode())
        stream.flush()
        if sync:
            os.fsync(stream.fileno())


def _end_line(stream, size: int) -> None:
    """Finish the last line of a file where it is whole, else cut it off."""
    stream.seek(0)
    start = stream.read().rfind(b"\n") + 1
    stream.seek(start)
    try:
        json.loads(stream.read())
        stream.seek(size)
        stream.write(b"\n")
    except ValueError:
        stream.truncate(start)


def write_json_lines(path: str | Path, rows: Iterable) -> Path:
    """One object per line as UTF-8, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(json_line(row) for row in rows)

    return write_atomic(path, write)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Text as UTF-8, whole or not at all."""
    text = without_surrogates(text)  # half of a pair has no UTF-8
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_report(path: str | os.PathLike, report: Mapping) -> Path:
    """A nested dict of results as indented JSON, whole or not at all; NaN becomes null."""
    return write_text(path, json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value):
    """A value as JSON takes it: numpy to Python, NaN and Inf to None, dataclasses to dicts, other objects to text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def refuse_to_replace(source: str | Path, folder: str | Path, name: str) -> None:
    """Stop before a result called `name` in `folder` takes the place of the file it is made from.

    Raises:
        ValueError: `source` lies in `folder` and bears the name of a file that would be written.
    """
    source = Path(source)
    if source.parent.resolve() == Path(folder).resolve() and source.name in [name + end for end in RESULT_SUFFIXES]:
        raise ValueError(f"{source}: a result in {folder} would replace this file; choose another output folder")

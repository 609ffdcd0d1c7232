"""What lies in the cache of conversions, since when nobody used it, and how it gets smaller.

A conversion is found by content and by the code that made it, so one whose checkpoint changed or whose code was
replaced is never asked for again, and stays. What a running process has opened is never removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from unimed.files import FolderInUseError, FolderLock, cache_folder, read_json, remove_left_overs, scratch_folder
from unimed.files import write_report as write_note
from unimed.io.limits import size_of
from unimed.locks import mark_in_use, unused

#: Variable with the size that the conversions are kept to: after each new one, the longest unused ones go.
LIMIT_VARIABLE = "UNIMED_CACHE_BYTES"
_KEY = re.compile(r"[0-9a-f]{32}")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Conversion:
    """One converted checkpoint.

    Args:
        folder: where it lies. source, layout: what it was made from; "" where it was made before notes were kept.
        code: hash of the code that made it. size: bytes of its files. last_used: seconds since 1970.
    """

    folder: Path
    source: str
    layout: str
    code: str
    size: int
    last_used: float


def is_whole(folder: Path) -> bool:
    """Whether a conversion is there; folders appear whole or not at all."""
    return (folder / "config.json").is_file()


def note_use(folder: Path, told: dict) -> None:
    """Say that a conversion is used by this process, from now until it ends.

    Args:
        told: `source`, `layout` and `code` of it, for the list.
    """
    note = _note(folder)
    with contextlib.suppress(OSError):  # a cache that others keep may be read-only
        mark_in_use(_mark(folder))
        if note.is_file():
            os.utime(note)
        else:
            write_note(note, told)


def conversions() -> list[Conversion]:
    """All that are in the cache, the longest unused one first."""
    with contextlib.suppress(FileNotFoundError):
        folders = [path for path in cache_folder("converted").iterdir() if _KEY.fullmatch(path.name)]
        return sorted((_described(path) for path in folders if is_whole(path)), key=lambda found: found.last_used)
    return []


def _described(folder: Path) -> Conversion:
    told, last_used = {}, folder.stat().st_mtime
    with contextlib.suppress(OSError, ValueError):
        read = read_json(_note(folder))
        told, last_used = (read if isinstance(read, dict) else {}), max(last_used, _note(folder).stat().st_mtime)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    words = {name: str(told.get(name, "")) for name in ("source", "layout", "code")}
    return Conversion(folder, size=size, last_used=last_used, **words)


def chosen(
    found: list[Conversion], older_than_s: float | None = None, most_bytes: int | None = None, code: str = ""
) -> list[Conversion]:
    """Which of `found` (as `conversions` gives them) go.

    Args:
        older_than_s: those that nobody used for so long.
        most_bytes: the longest unused ones, until the others are no larger than this together.
        code: those that other code than this made, which are never asked for again.
    """
    now, size = time.time(), sum(one.size for one in found)
    going = []
    for one in found:
        old = older_than_s is not None and now - one.last_used > older_than_s
        stale = bool(code) and one.code != code
        if old or stale:
            going.append(one)
            size -= one.size
    for one in found:
        if most_bytes is not None and size > most_bytes and one not in going:
            going.append(one)
            size -= one.size
    return going


def remove(one: Conversion) -> str:
    """Remove a conversion; returns why it stays, "" where it is gone."""
    folder = one.folder
    if not is_whole(folder):
        return ""
    with unused(_mark(folder)) as free:
        if not free:
            return "in use"
        try:
            # Whoever converts it anew right now began before this one was listed.
            with FolderLock(folder, "pruning", beside=True), scratch_folder(folder.parent) as bin_:
                os.replace(folder, bin_ / folder.name)  # at once, so that nobody ever finds a half of it
                _note(folder).unlink(missing_ok=True)
                shutil.rmtree(bin_ / folder.name)
        except FolderInUseError:
            return "being converted"
    return ""


def limit_bytes() -> int | None:
    """What `$UNIMED_CACHE_BYTES` says, None where it is not set.

    Raises:
        ValueError: it is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        return size_of(text) if text else None
    except ValueError as error:
        raise ValueError(f"{LIMIT_VARIABLE}={error}") from None


def prune_to_limit() -> None:
    """Keep to `limit_bytes`; what is in use stays.

    Raises:
        ValueError: it is no size.
    """
    if (most := limit_bytes()) is not None:
        for one in chosen(conversions(), most_bytes=most):
            with contextlib.suppress(OSError):
                remove(one)


def remove_forgotten() -> None:
    """Remove what killed processes left, and notes on files that are no longer there."""
    remove_left_overs(cache_folder("converted"))
    kept = {one.folder.name for one in conversions()}
    with contextlib.suppress(FileNotFoundError):
        for note in list(cache_folder("hashes").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if not Path(read_json(note)["path"]).exists():
                    note.unlink()
        for note in list(cache_folder("uses").glob("*.json")):
            if note.stem not in kept:
                with unused(note.with_suffix(".lock")) as free:
                    if free:
                        note.unlink(missing_ok=True)


def seconds_of(text: str) -> float:
    """Seconds of an age in words: "90m", "12h", "30d", "2w".

    Raises:
        ValueError: no age.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no age; write a number and m, h, d or w, such as 30d")
    return float(match[1]) * _SECONDS[match[2]]


def _note(folder: Path) -> Path:
    return cache_folder("uses") / f"{folder.name}.json"


def _mark(folder: Path) -> Path:
    return cache_folder("uses") / f"{folder.name}.lock"

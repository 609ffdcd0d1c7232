"""Places of results: refused before any work where nothing can be written, and the system's own errors in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from unimed.files import unfinished_file


def refuse_unwritable(path: str | os.PathLike, kind: str = "folder") -> None:
    """Refuse a place where a folder or file of results cannot be made; nothing is left there.

    Args:
        path: it need not exist, nor the folders above it.
        kind: "folder"; "file"; or "new", a file or folder that must not be there yet.

    Raises:
        NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError: something else is there, or nothing can
            be written; the message names the place and the remedy.
    """
    place = Path(path)
    try:
        if kind == "folder" and place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{place} is a file, the results need a folder; choose another name")
        if kind == "new" and (place.is_file() or (place.is_dir() and any(place.iterdir()))):
            raise FileExistsError(f"{place} is already there; choose another name or remove it")
        if kind == "file" and place.is_dir():
            raise IsADirectoryError(f"{place} is a folder; name the file to write")
        folder = place if kind == "folder" else place.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"{place}: {folder} is a file, not a folder; choose another place")
        # By trying: permissions do not tell of read-only disks, quotas and folders of the system.
        with unfinished_file(folder):
            pass
    except OSError as error:
        if error.errno is None:
            raise
        reason = (error.strerror or type(error).__name__).lower()
        raise PermissionError(f"{place}: nothing can be written there ({reason}); choose another place") from error


def explained(error: BaseException) -> str:
    """An error of the operating system about a file, or a full disk, as one line; "" for every other error."""
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full: {str(error) if error.filename is None else _shown(error.filename)}"
    if error.filename is None:
        return ""
    place = _shown(error.filename)
    if isinstance(error, FileNotFoundError):
        return f"{place}: no such file or folder"
    if isinstance(error, PermissionError):
        return f"{place}: permission denied; look at who owns it, or choose another place"
    if isinstance(error, FileExistsError | NotADirectoryError):
        file = next((str(part) for part in (Path(place), *Path(place).parents) if part.is_file()), "")
        if file:
            return f"{place}: {file} is a file, not a folder; choose another place"
        return f"{place} is already there; choose another name or remove it"
    if isinstance(error, IsADirectoryError):
        return f"{place} is a folder, not a file"
    return f"{place}: {(error.strerror or type(error).__name__).lower()}"


def _shown(name: str | bytes | int) -> str:
    """The place that the user knows: unfinished files and folders are ours and lie in it."""
    parts = Path(os.fsdecode(name) if isinstance(name, str | bytes) else f"file {name}").parts
    known = next((place for place, part in enumerate(parts) if part.startswith(".unfinished-")), len(parts))
    return str(Path(*parts[:known])) if known else "."

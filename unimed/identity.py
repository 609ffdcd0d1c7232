"""What a file, a folder or a case is, told by its content: keys of runs and caches that no replaced file can fool."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

#: (path, device, inode, size, times of change of content and of entry) -> digest, of this process.
_digests: dict[tuple, str] = {}
#: So many are kept; runs over more files than that need no more memory for it.
_MOST_DIGESTS = 1 << 16


def file_digest(path: str | os.PathLike) -> str:
    """sha256 of a file's content in hex; read again whenever any time, the size or the inode of the file differs.

    Raises:
        OSError: it cannot be read.
    """
    status = os.stat(path)
    key = (os.path.realpath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    digest = _digests.get(key)
    if digest is None:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        while len(_digests) >= _MOST_DIGESTS:
            for oldest in list(_digests)[:1]:  # another thread may have emptied it
                _digests.pop(oldest, None)
        _digests[key] = digest
    return digest


def content_digest(path: str | os.PathLike) -> str:
    """Digest of a file, or of a folder: names and contents of all files below it that are not hidden.

    A path that is not there has a digest of its own, so that it differs from what may appear there later.

    Raises:
        OSError: something cannot be read.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    if not stat.S_ISDIR(mode):
        return file_digest(path)
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            if not name.startswith("."):
                file = os.path.join(folder, name)
                if os.path.isfile(file):
                    place = os.path.relpath(file, path)
                    digest.update(f"{len(place)}:{place}:{file_digest(file)};".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def quick_stamp(path: str | os.PathLike) -> str:
    """Size and time of a file, or of all files directly in a folder; "missing" where there is none.

    It differs where a file was replaced in any usual way, and costs no reading.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            status = path.stat()
            return f"{status.st_size}-{status.st_mtime_ns}"
        with os.scandir(path) as entries:
            files = sorted((entry.name, entry.stat()) for entry in entries if entry.is_file())
        rows = "".join(f"{name}\0{status.st_size}-{status.st_mtime_ns}\n" for name, status in files)
        return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    except OSError:
        return "missing"


def identity_of(value) -> str:
    """Digest of a value made of plain values, lists, mappings and paths; what lies at a path counts, not where it lies.

    Text that is the path of a file counts as one.
    """
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _plain(value):
    if isinstance(value, os.PathLike):
        return {"content": content_digest(value)}
    if isinstance(value, str):
        return {"content": content_digest(value)} if _names_a_file(value) else ["text", value]
    if isinstance(value, Mapping):
        return {"mapping": sorted(([str(key), _plain(item)] for key, item in value.items()), key=lambda pair: pair[0])}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | float):
        return value
    if hasattr(value, "tobytes"):  # arrays
        content = hashlib.sha256(value.tobytes()).hexdigest()
        return {"array": [str(value.dtype), list(getattr(value, "shape", ())), content]}
    return {"other": repr(value)}


def _names_a_file(text: str) -> bool:
    if not text or len(text) > 1024 or "\n" in text or "\0" in text or "/" not in text:
        return False
    try:
        return os.path.exists(text)
    except (OSError, ValueError):
        return False

"""Files and folders that appear whole or not at all, and what their names may be."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with a temporary path in the folder of `path`, then rename it to `path` in one step.

    The temporary name keeps the suffix, because several libraries choose the format by it. If `write` raises,
    the temporary file is removed and what was at `path` before is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix="".join(path.suffixes[-2:]))
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        share(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


#: What the files of a result end in.
RESULT_SUFFIXES = (".json", ".jsonl", ".png", ".nii.gz", ".nrrd", ".npz", ".seg.dcm")


def refuse_to_replace(source: str | Path, folder: str | Path, name: str) -> None:
    """Stop before a result called `name` in `folder` takes the place of the file it is made from.

    Raises:
        ValueError: `source` lies in `folder` and bears the name of a file that would be written.
    """
    source = Path(source)
    if source.parent.resolve() == Path(folder).resolve() and source.name in [name + end for end in RESULT_SUFFIXES]:
        raise ValueError(f"{source}: a result in {folder} would replace this file; choose another output folder")


def share(path: Path) -> None:
    """Give a file the permissions any new file gets: mkstemp and safetensors write files that only the owner reads."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def atomic_folder(destination: Path):
    """A temporary folder that becomes `destination` if nothing is raised, and is removed otherwise.

    Raises:
        FileExistsError: `destination` holds something already.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} is already there; choose another name or remove it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Text as UTF-8, whole or not at all."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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

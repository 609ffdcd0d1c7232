"""Which code a file in Python's pickle format names, found without running any of it, and with nothing of it opened.

Weights (`.pt`, `.pth`, `.bin`, `.ckpt`) and old record files are read here without running anything: what is no tensor
or plain container is refused while it is read. With the extra `scan` every such file is looked through before that, so
that a hostile one is named as such, and is not opened at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("unimed.pickles")
#: Suffixes of files that may hold a pickle.
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
#: Suffixes of files beside them that hold none.
_OTHERS = (".safetensors", ".json")
#: Set to "off" where picklescan is installed and files should not be looked through.
VARIABLE = "UNIMED_SCAN"


@dataclass(frozen=True)
class PickleReport:
    """What a file names: "module.name" of each class or function, sorted by what is known of it.

    Args:
        dangerous: runs commands, opens files or connections, or hides what it is.
        unknown: on no list; refused when the file is read, unless it is one of a list of plain classes.
        harmless: needed for tensors.
        whole: whether all of the file could be followed.
    """

    path: Path
    dangerous: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    whole: bool = True

    def __str__(self) -> str:
        parts = [f"{kind}: {', '.join(names)}" for kind, names in
                (("dangerous", self.dangerous), ("not known", self.unknown)) if names]  # fmt: skip
        parts += [] if self.whole else ["its end cannot be followed"]
        return (
            f"{self.path}: {'; '.join(parts) or f'nothing but tensors and containers ({len(self.harmless)} classes)'}"
        )


def available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("picklescan") is not None


def scan(path: str | Path) -> PickleReport:
    """Look through a file, whether it is a pickle, several, or an archive of `torch.save`.

    Raises:
        ImportError: without the extra `scan`.
        OSError: it cannot be read.
        ValueError: it is neither of these, or too damaged to be followed.
    """
    try:
        from picklescan import scanner
    except ImportError as error:
        raise ImportError("looking through pickles needs picklescan: pip install 'unimed[scan]'") from error
    path = Path(path)
    _refuse_other_formats(path)
    with _silent():
        try:
            found = scanner.scan_file_path(str(path))
        except OSError:
            raise
        except Exception as error:  # of zipfile, struct, pickletools and its own, by what is damaged
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path}: cannot be looked through ({reason})") from error
    names: dict[Any, set[str]] = {level: set() for level in scanner.SafetyLevel}
    for one in found.globals:
        names[one.safety].add(f"{one.module}.{one.name}")
    levels = (scanner.SafetyLevel.Dangerous, scanner.SafetyLevel.Suspicious, scanner.SafetyLevel.Innocuous)
    dangerous, suspicious, innocuous = (tuple(sorted(names[level])) for level in levels)
    return PickleReport(path, dangerous, suspicious, innocuous, whole=not found.scan_err)


def refuse_dangerous(path: str | Path, error: type[Exception] = ValueError) -> PickleReport | None:
    """Look through a file before it is read, where the extra `scan` is installed; what it names is logged.

    Returns:
        The report; None without the extra, with `UNIMED_SCAN=off`, for other formats, and for files too damaged to be
        followed, of which the reader will say so.

    Raises:
        `error`: it names dangerous code. None of it was run, and the file was not opened.
    """
    path = Path(path)
    if path.suffix.lower() in _OTHERS or os.environ.get(VARIABLE, "").lower() in ("off", "0") or not available():
        return None
    try:
        report = scan(path)
    except (OSError, ValueError):
        return None
    if report.dangerous:
        raise error(
            f"{path}: names dangerous code ({', '.join(report.dangerous)}), which is never executed here; the file was "
            "not opened. Fetch it from another source"
        )
    logger.info("%s", report)
    return report


def _refuse_other_formats(path: Path) -> None:
    """The library finds nothing in what it does not understand, which must not pass for harmless."""
    with open(path, "rb") as stream:
        start = stream.read(4)
        if start == b"PK\3\4":
            return
        stream.seek(0)
        try:
            next(iter(pickletools.genops(stream)))
        except Exception as error:
            raise ValueError(f"{path}: neither a pickle nor an archive of torch ({error})") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The library logs each finding; here they become one report."""
    log = logging.getLogger("picklescan")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before

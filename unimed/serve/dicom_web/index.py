"""DICOM files by their UIDs: those below the server's root, and what an owner stored."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimed.files import write_atomic
from unimed.io.dicom import open_dicom
from unimed.io.dicom_series import is_dicom
from unimed.serve.problems import Problem, missing

#: PS3.5 9.1: components of digits, at most 64 characters.
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LISTED_S = 2.0
_MOST_FILES = 100_000


@dataclass(frozen=True, eq=False)
class Instance:
    """One file: its UIDs and its header without pixels."""

    path: Path
    study: str
    series: str
    sop: str
    header: Any
    own: bool = False

    @property
    def frames(self) -> int:
        return int(self.header.get("NumberOfFrames", 1) or 1)


class Index:
    """Instances that an owner may see. Files below `root` belong to everybody, those in `folder` to the owner.

    Headers are read once per file, size and time of change; what is no DICOM, cannot be read or bears no UIDs is left
    out. Of two files of one SOP instance the first counts.
    """

    def __init__(self, folder: Path, root: Path | None):
        self.folder, self.root = folder, root
        self._lock = threading.RLock()
        self._read: dict[tuple, Instance | None] = {}
        self._listed: dict[str, tuple[float, dict[str, Instance]]] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def place(self, owner: str) -> Path:
        """The folder of what an owner stored."""
        return self.folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def instances(self, owner: str) -> dict[str, Instance]:
        """{SOP instance UID: instance}."""
        with self._lock:
            when, found = self._listed.get(owner, (-_LISTED_S, {}))
            if time.monotonic() - when < _LISTED_S:
                return found
            found = {}
            if len(self._read) > 2 * _MOST_FILES:  # of files that changed or went
                self._read.clear()
            for path, own in self._files(owner):
                stat = path.stat()
                key = (str(path), stat.st_size, stat.st_mtime_ns)
                if key not in self._read:
                    self._read[key] = _instance(path, own)
                if (one := self._read[key]) is not None:
                    found.setdefault(one.sop, one)
            self._listed[owner] = (time.monotonic(), found)
            return found

    def _files(self, owner: str) -> Iterator[tuple[Path, bool]]:
        count = 0
        for place, own in ((self.root, False), (self.place(owner), True)):
            base = None if place is None else os.path.realpath(place)
            for folder, inner, names in os.walk(place) if place is not None and place.is_dir() else ():
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                for name in sorted(names):
                    path = Path(folder, name)
                    # Links that lead out of the folder are nobody's to read.
                    if name.startswith(".") or not os.path.realpath(path).startswith(base + os.sep):
                        continue
                    count += 1
                    if count > _MOST_FILES:
                        return
                    if path.is_file() and is_dicom(path):
                        yield path, own

    def chosen(self, owner: str, study: str, series: str = "", sop: str = "") -> list[Instance]:
        """The instances of a study, series or instance, by series and number.

        Raises:
            Problem: 404, none.
        """
        found = [
            one for one in self.instances(owner).values()
            if study in ("", one.study) and series in ("", one.series) and sop in ("", one.sop)
        ]  # fmt: skip
        if not found:
            raise missing("instance")
        return sorted(found, key=lambda one: (one.study, one.series, _number(one.header), one.sop))

    def place_of_series(self, owner: str, uid: str) -> Path | None:
        """The file or folder that holds a series, None where there is none."""
        members = [one for one in self.instances(owner).values() if one.series == uid]
        if not members:
            return None
        # A copy under another study, or one that was stored beside the server's own files, is not mixed with it.
        found = [one.path for one in members if (one.study, one.own) == (members[0].study, members[0].own)]
        return found[0] if len(found) == 1 else Path(os.path.commonpath([path.parent for path in found]))

    def add(self, owner: str, dataset, content: bytes, most_bytes: int) -> Instance:
        """Store one object.

        Raises:
            Problem: 400, without UIDs; 409, another object of this UID is there; 413, more than the owner may keep.
        """
        uids = [str(dataset.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        if not all(UID.fullmatch(uid) and len(uid) <= 64 for uid in uids):
            raise Problem(400, "the object has no valid study, series and instance UID")
        with self._lock:
            self._listed.pop(owner, None)
            known = self.instances(owner).get(uids[2])
            if known is not None:
                if known.path.read_bytes() == content:
                    return known
                raise Problem(409, "another object of this SOP instance UID is there")
            kept = sum(p.stat().st_size for p in self.place(owner).rglob("*") if p.is_file())
            if kept + len(content) > most_bytes:
                raise Problem(413, f"{kept} bytes are kept for you, at most {most_bytes}")
            path = self.place(owner) / uids[0] / uids[1] / f"{uids[2]}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(path, lambda temporary: temporary.write_bytes(content))
            self._listed.pop(owner, None)
            return self.instances(owner)[uids[2]]


def _instance(path: Path, own: bool) -> Instance | None:
    try:
        header = open_dicom(path, pixels=False)
        uids = [str(header.get(n, "")) for n in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    except Exception:  # noqa: BLE001 - pydicom raises many kinds; one bad file must not hide the others
        return None
    return Instance(path, *uids, header, own) if all(map(UID.fullmatch, uids)) else None


def _number(header) -> int:
    try:
        return int(header.get("InstanceNumber") or 0)
    except (TypeError, ValueError):
        return 0

"""Uploads: kept under an id that only their owner can use, deleted when nobody used them for a while."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unimed.files import read_json, write_text
from unimed.names import safe_name
from unimed.serve.problems import Problem, missing

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(eq=False)
class Stored:
    """One upload: a file, or the folder of several (a DICOM series)."""

    id: str
    owner: str
    path: Path
    digest: str
    size: int
    created: float
    used: float = field(default_factory=time.time)
    held: int = 0  # by requests and jobs that read it now

    def to_dict(self) -> dict:
        """What the owner is told; no path."""
        return {"id": self.id, "object": "image", "bytes": self.size, "sha256": self.digest,
                "created": int(self.created), "url": f"unimed://images/{self.id}"}  # fmt: skip


class ImageStore:
    """Uploads below a folder that only its owner reads; those of an earlier process are found again."""

    def __init__(self, folder: Path, max_owner_bytes: int):
        self.folder, self.max_owner_bytes = Path(folder), max_owner_bytes
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._images: dict[str, Stored] = {}
        for place in self.folder.iterdir():
            stored = _found(place)
            if stored is None:
                shutil.rmtree(place, ignore_errors=True)  # an upload that was cut off
            else:
                self._images[stored.id] = stored

    def put(self, owner: str, files: Sequence[tuple[str, bytes]]) -> Stored:
        """Keep (name, content) pairs as one image.

        Raises:
            Problem: 400 for nothing, 413 for more than the owner may keep.
        """
        if not files or not all(len(content) for _, content in files):
            raise Problem(400, "the upload is empty", param="file")
        size = sum(len(content) for _, content in files)
        with self._lock:
            kept = sum(stored.size for stored in self._images.values() if stored.owner == owner)
        if kept + size > self.max_owner_bytes:
            raise Problem(413, f"uploads of {kept} bytes are kept for you, at most {self.max_owner_bytes}; delete some")
        digest = hashlib.sha256()
        id_ = secrets.token_hex(16)
        place = self.folder / id_
        (place / "data").mkdir(parents=True, mode=0o700)
        try:
            for number, (name, content) in enumerate(files):
                # Two files of one name are two slices of one series.
                plain = safe_name(Path(name.replace("\\", "/")).name or "image")
                digest.update(len(content).to_bytes(8, "little") + plain.encode() + content)
                target = place / "data" / plain
                (target if not target.exists() else target.with_name(f"{number}-{plain}")).write_bytes(content)
            path = next((place / "data").iterdir()) if len(files) == 1 else place / "data"
            now = time.time()
            stored = Stored(id_, owner, path, digest.hexdigest(), size, now)
            values = {"id": id_, "owner": owner, "path": str(path.relative_to(place)), "digest": stored.digest,
                      "size": size, "created": now}  # fmt: skip
            write_text(place / "image.json", _text(values))
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        with self._lock:
            self._images[id_] = stored
        return stored

    def get(self, owner: str, id_: str) -> Stored:
        """Raises Problem 404 for an unknown id and for that of another owner."""
        with self._lock:
            stored = self._images.get(id_) if _ID.fullmatch(id_) else None
            if stored is None or stored.owner != owner:
                raise missing("image")
            stored.used = time.time()
            return stored

    @contextlib.contextmanager
    def held(self, owner: str, id_: str):
        """The upload, which is not deleted within the block."""
        stored = self.get(owner, id_)
        with self._lock:
            stored.held += 1
        try:
            yield stored
        finally:
            with self._lock:
                stored.held -= 1
                stored.used = time.time()

    def of(self, owner: str) -> list[Stored]:
        with self._lock:
            return [stored for stored in self._images.values() if stored.owner == owner]

    def delete(self, owner: str, id_: str) -> None:
        """Raises Problem 404 as `get`."""
        stored = self.get(owner, id_)
        with self._lock:
            self._images.pop(stored.id, None)
        shutil.rmtree(self.folder / stored.id, ignore_errors=True)

    def reap(self, idle_s: float) -> int:
        """Delete what nobody used for so long; returns how many."""
        before = time.time() - idle_s
        with self._lock:
            gone = [s.id for s in self._images.values() if s.used < before and not s.held]
            for id_ in gone:
                del self._images[id_]
        for id_ in gone:
            shutil.rmtree(self.folder / id_, ignore_errors=True)
        return len(gone)

    def totals(self) -> tuple[int, int]:
        """(images, bytes) of all owners."""
        with self._lock:
            return len(self._images), sum(stored.size for stored in self._images.values())


def _text(values: dict) -> str:
    from unimed.files import json_text

    return json_text(values)


def _found(place: Path) -> Stored | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = read_json(place / "image.json")
        if _ID.fullmatch(place.name) and values["id"] == place.name and (place / values["path"]).exists():
            return Stored(
                values["id"], values["owner"], place / values["path"], values["digest"], values["size"],
                values["created"],
            )  # fmt: skip
    return None


class Cache:
    """The newest values by key, at most so many bytes of them.

    Args:
        looked_up: told of each look-up, "hit" or "miss".
    """

    def __init__(self, most_bytes: int, looked_up: Callable[[str], None] = lambda result: None):
        self.most, self.size, self.looked_up = most_bytes, 0, looked_up
        self._lock = threading.Lock()
        self._values: OrderedDict = OrderedDict()

    def get(self, key):
        """The value, or None."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
        self.looked_up("miss" if found is None else "hit")
        return None if found is None else found[0]

    def put(self, key, value, size: int) -> None:
        """Keep a value; the ones longest unused go. One larger than half of the cache is not kept."""
        if size > self.most // 2:
            return
        with self._lock:
            if key in self._values:
                self.size -= self._values.pop(key)[1]
            self._values[key] = (value, size)
            self.size += size
            while self.size > self.most:
                self.size -= self._values.popitem(last=False)[1][1]

    def forget(self, wanted: Callable[[tuple], bool]) -> None:
        """Drop all whose key is wanted."""
        with self._lock:
            for key in [key for key in self._values if wanted(key)]:
                self.size -= self._values.pop(key)[1]

    def __len__(self) -> int:
        return len(self._values)

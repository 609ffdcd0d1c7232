"""Published checkpoints are converted once: the cache of conversions, by content.

A conversion is found by what it was made from: the bytes of the checkpoint (and of files beside it that the converter
reads), the code that converts, and its options. So a checkpoint that was changed, replaced or moved is never answered
by the conversion of another one. Large files are read for their hash once and again only after they were touched: size,
inode, time of change and of the last change of the entry (which no tool can set back) stand for the content in between.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from unimed.files import FolderLock, cache_folder, write_text
from unimed.models.checkpoints import pruning

logger = logging.getLogger("unimed.models.checkpoints")
#: Files up to this many bytes are read for their hash every time.
SMALL = 1 << 24
#: Longest wait for another process that converts the same checkpoint, seconds.
WAIT_S = 4 * 3600


def converted(source: str | Path, layout: str, module, **options) -> Path:
    """The folder that `module.convert(source, ...)` writes; made where it is not there yet.

    Several processes may ask at once: one converts, the others wait for it. What killed ones left is removed.

    Raises:
        CheckpointError: see the converter.
        FolderInUseError: another process has been converting for longer than `WAIT_S`.
    """
    source = Path(source)
    target = cache_folder("converted") / key_of(source, layout, module, options)
    # Before looking, so that nobody prunes what is found here.
    pruning.note_use(target, {"source": str(source.absolute()), "layout": layout, "code": code_hash()})
    if pruning.is_whole(target):
        return target
    pruning.limit_bytes()  # what is wrong with it is said before the work, not after
    with FolderLock(target, f"converting {source}", beside=True, wait_s=WAIT_S, report=logger.warning):
        if not pruning.is_whole(target):
            logger.info("converting %s (%s) to %s", source, layout, target)
            module.convert(source, target, **options)
    pruning.prune_to_limit()
    return target


def key_of(source: Path, layout: str, module=None, options: Mapping | None = None) -> str:
    """32 hex digits that stand for content, code and options."""
    files = _files(source)
    for extra in module.beside(source) if hasattr(module, "beside") else ():
        files += _files(extra)
    told = {
        "layout": layout,
        "options": {name: str(value) for name, value in sorted((options or {}).items())},
        "code": code_hash(),
        "files": [[name, content_hash(path)] for name, path in files],
    }
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _files(source: Path) -> list[tuple[str, Path]]:
    if source.is_file():
        return [(source.name, source)]
    found = [path for path in source.rglob("*") if path.is_file()]
    named = [(str(path.relative_to(source)), path) for path in found]
    return sorted(pair for pair in named if not any(part.startswith(".") for part in Path(pair[0]).parts))


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    now = os.stat(path)
    if now.st_size <= SMALL:
        return _sha256(path)
    stamp = [now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns]
    name = hashlib.sha256(json.dumps([str(path.resolve()), *stamp]).encode()).hexdigest()
    note = cache_folder("hashes") / f"{name[:32]}.json"
    try:
        return json.loads(note.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = _sha256(path)
    after = os.stat(path)
    if [after.st_size, after.st_mtime_ns, after.st_ctime_ns] == stamp[2:]:  # not while somebody writes it
        write_text(note, json.dumps({"sha256": digest, "path": str(path)}) + "\n")
    return digest


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def code_hash() -> str:
    """A hash of everything that makes models: a converter that was mended converts again."""
    import transformers

    digest = hashlib.sha256(transformers.__version__.encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()

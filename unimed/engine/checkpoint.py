"""Checkpoints that survive a kill at any moment: one folder per step, whole or not there, checked by sha256.

    checkpoints/step_00000200/
        model.safetensors      weights under the names of the task
        ema.safetensors        averaged weights, where EMA is on
        optimizer.safetensors  "<parameter>/<state>", one tensor each
        rng.safetensors        generator states, "<rank>/<generator>"
        state.json             step, data position, loop counters, optimizer groups, generator states that are numbers
        metadata.json          written last: format, step, sha256 and size of every file above

A folder is written under a temporary name, every file flushed, then renamed. Nothing is ever unpickled. Where ranks
write their parts (`unimed.engine.sharded`), `shards/` stands in the place of the tables of weights and optimizer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimed.engine import sharded
from unimed.files import share

#: The newest format that is read: 1 holds whole tensors, 2 the parts of the ranks.
FORMAT = 2
NAME = re.compile(r"step_(\d{8,})")
logger = logging.getLogger("unimed.engine")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or does not fit; the message names the file and what to do."""


@dataclass
class Checkpoint:
    """What one folder holds. Tensor tables are {name: tensor on the CPU}; `state` is JSON."""

    step: int
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None


def save(root: str | Path, checkpoint: Checkpoint, keep: int = 3) -> Path:
    """Write a checkpoint below `root`, verify it, and only then delete those beyond the newest `keep`.

    Raises:
        CheckpointError: it could not be written whole (disk full, folder not writable). Nothing old was touched.
    """
    with writing(root, checkpoint.step) as temporary:
        files = write_tables(temporary, checkpoint.tables, checkpoint.state)
        finish(root, temporary, checkpoint.step, files, 1, keep)
    return Path(root) / f"step_{checkpoint.step:08d}"


@contextmanager
def writing(root: str | Path, step: int) -> Iterator[Path]:
    """A temporary folder for the checkpoint of a step, which is removed unless `finish` gave it its name.

    Raises:
        CheckpointError: whatever went wrong within the block.
    """
    root = Path(root)
    temporary = root / f".writing-step_{step:08d}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        temporary.mkdir()
        yield temporary
    # safetensors reports a full disk as its own error, which is no OSError.
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {root}: {type(error).__name__}: {error}. "
            "Older checkpoints are untouched; free space or make the folder writable, then resume."
        ) from error


def write_tables(folder: Path, tables: Mapping[str, Mapping], state: Mapping) -> dict[str, dict]:
    """Write tables of tensors and the state into a folder; returns {file name: {"sha256", "bytes"}}, all flushed."""
    from safetensors.torch import save_file

    names = ["state.json"]
    for name, table in tables.items():
        names.append(f"{name}.safetensors")
        save_file({key: value.contiguous() for key, value in table.items()}, folder / names[-1])
        share(folder / names[-1])
    (folder / "state.json").write_text(json.dumps(state))
    return {name: fingerprint(folder / name, flush=True) for name in sorted(names)}


def finish(root: str | Path, temporary: Path, step: int, files: Mapping[str, dict], version: int, keep: int) -> None:
    """Give a written folder its metadata and its name, verify it, delete those beyond the newest `keep` (0: none)."""
    root, final = Path(root), Path(root) / f"step_{step:08d}"
    metadata = temporary / "metadata.json"
    metadata.write_text(json.dumps({"format": version, "step": step, "files": files}, indent=1))
    _flush(metadata)
    _flush(temporary)
    if final.exists():
        # The same step is saved again (a run resumed and stopped at once): the old one goes aside, then away.
        old = root / f".replaced-{final.name}-{os.getpid()}"
        os.rename(final, old)
        os.rename(temporary, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, final)
    _flush(root)
    verify(final, shards=False)  # ranks have read theirs back themselves
    for path in _folders(root)[keep:] if keep > 0 else ():
        shutil.rmtree(path, ignore_errors=True)


class SaveThread:
    """One save at a time in a thread of its own. The process does not end before the thread has."""

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def start(self, save: Callable[[], object]) -> None:
        """Begin a save; the one before must have been waited for."""

        def run() -> None:
            try:
                save()
            except CheckpointError as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until what was given is written.

        Raises:
            CheckpointError: it could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


class Writer:
    """Saves below one folder, in a thread of its own where `background` is set; one at a time.

    A save that failed in the background is reported by the next call.
    """

    def __init__(self, root: str | Path, keep: int, background: bool = False):
        self.root, self.keep, self.background = Path(root), keep, background
        self._thread = SaveThread()

    def write(self, checkpoint: Checkpoint, wait: bool = False, prune: bool = True) -> None:
        """Save; with `background` and without `wait` the tensors must not change any more (give copies).

        Args:
            prune: delete those beyond the newest `keep` afterwards.

        Raises:
            CheckpointError: this save failed, or the one before did in the background.
        """
        self.wait()
        keep = self.keep if prune else 0
        if not self.background:
            save(self.root, checkpoint, keep)
            return
        self._thread.start(lambda: save(self.root, checkpoint, keep))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until what was given is written.

        Raises:
            CheckpointError: it could not be.
        """
        self._thread.wait()


def discard(path: str | Path) -> None:
    """Delete one checkpoint; killed in the middle, it is a leftover and not a damaged checkpoint."""
    path = Path(path)
    aside = path.with_name(f".writing-{path.name}-{os.getpid()}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def verify(path: str | Path, shards: bool = True) -> dict[str, Any]:
    """Read every file of a checkpoint and compare size and sha256 with the metadata.

    Args:
        shards: also read the parts that ranks have written; without, their sizes are compared.

    Returns:
        the metadata.

    Raises:
        CheckpointError: naming the file that is missing, too short or changed.
    """
    path = Path(path)
    try:
        metadata = json.loads((path / "metadata.json").read_text())
        files, version, step = metadata["files"], metadata["format"], metadata["step"]
        expected = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}/metadata.json cannot be read: {type(error).__name__} {error}") from error
    if not (type(version) is int and type(step) is int and all(_is_plain(name) for name, _, _ in expected)):
        raise CheckpointError(
            f"{path}/metadata.json is damaged: format, step and names of files are not what is written"
        )
    if version > FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads up to {FORMAT}; update unimed")
    for name, size, sha256 in expected:
        try:
            by_size = not shards and "/" in name
            found = {"bytes": (path / name).stat().st_size, "sha256": sha256} if by_size else fingerprint(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read: {error}") from error
        if found["bytes"] != size:
            raise CheckpointError(f"{path / name} has {found['bytes']} bytes, {size} were written")
        if found["sha256"] != sha256:
            raise CheckpointError(f"{path / name} was changed after it was written (sha256 differs)")
    # Whatever lies there is read, and a part of another checkpoint would take the place of the right one.
    for part in sorted((path / sharded.FOLDER).glob("*")):
        if f"{sharded.FOLDER}/{part.name}" not in files:
            raise CheckpointError(f"{part} is none of the files that were written; move it away")
    return metadata


def is_sharded(path: str | Path) -> bool:
    """Whether ranks wrote their parts of the checkpoint."""
    return (Path(path) / sharded.FOLDER).is_dir()


def load(path: str | Path, tables: tuple[str, ...] | None = None, whole: bool = True) -> Checkpoint:
    """Verify and read one checkpoint; `tables` limits what is read (e.g. ("model",)).

    Args:
        whole: also put the parts of ranks together; without, `unimed.engine.sharded.read_into` reads what each needs.

    Raises:
        CheckpointError: as `verify`.
    """
    from safetensors.torch import load_file

    path = Path(path)
    metadata = verify(path, shards=whole)
    files = [name for name in metadata["files"] if name.endswith(".safetensors") and "/" not in name]
    names = [name.removesuffix(".safetensors") for name in files]
    wanted = names if tables is None else [name for name in names if name in tables]
    found = {name: load_file(path / f"{name}.safetensors") for name in wanted}
    if whole and is_sharded(path):
        found |= sharded.read_whole(path / sharded.FOLDER, tables)
    return Checkpoint(
        step=metadata["step"],
        tables=found,
        state=json.loads((path / "state.json").read_text()),
        path=path,
    )


def find(root: str | Path) -> Path | None:
    """The newest checkpoint below `root` that is whole; damaged newer ones are named in the log. None without any."""
    for path in _folders(Path(root)):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logger.warning("damaged checkpoint skipped: %s", error)
    return None


def resolve(path: str | Path) -> Path:
    """A checkpoint folder from what a user may type: the folder itself, `checkpoints/`, or the run folder.

    Raises:
        CheckpointError: nothing there.
    """
    path = Path(path)
    if (path / "metadata.json").is_file():
        return path
    for root in (path / "checkpoints", path):
        found = find(root) if root.is_dir() else None
        if found:
            return found
    raise CheckpointError(f"no whole checkpoint at {path}; give a step_… folder or the run folder that holds it")


def load_weights(path: str | Path, prefer_ema: bool = True) -> Mapping[str, Any]:
    """Weights of a checkpoint folder of this engine, a run folder, or a file (.safetensors, .pth read safely).

    With `prefer_ema` the averaged weights replace the raw ones of the same name where they were kept.
    """
    path = Path(path)
    if path.is_file():
        from unimed.models.checkpoints.reading import read_state_dict

        try:
            return read_state_dict(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    loaded = load(resolve(path), tables=("model", "ema"))
    return {**loaded.tables["model"], **(loaded.tables.get("ema", {}) if prefer_ema else {})}


def _folders(root: Path) -> list[Path]:
    """Finished checkpoint folders, newest first."""
    found = [path for path in root.glob("step_*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _remove_leftovers(root: Path) -> None:
    """Temporary folders of killed runs. Only one run writes into a run folder."""
    for pattern in (".writing-*", ".replaced-*"):
        for path in root.glob(pattern):
            kept = root / re.sub(r"^\.\w+-(step_\d+)-\d+$", r"\1", path.name)
            if path.name.startswith(".replaced-") and not kept.exists():
                os.rename(path, kept)  # killed between the two renames: the old one is still the good one
            else:
                shutil.rmtree(path, ignore_errors=True)


def fingerprint(path: Path, flush: bool = False) -> dict[str, Any]:
    """{"sha256", "bytes"} of a file; with `flush` it is on the disk afterwards."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
        return {"sha256": digest.hexdigest(), "bytes": stream.tell()}


def _is_plain(name: str) -> bool:
    """Whether it names a file of the folder, or of its shards."""
    return Path(name).name == name.removeprefix(f"{sharded.FOLDER}/")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

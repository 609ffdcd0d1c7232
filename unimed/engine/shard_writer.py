"""Checkpoints whose tensors all ranks write together; they appear whole or not at all, as those of one writer do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unimed.engine import sharded
from unimed.engine.checkpoint import Checkpoint, CheckpointError, SaveThread, fingerprint, finish, write_tables, writing
from unimed.engine.strategy import world


class ShardWriter:
    """Saves below one folder that all ranks see; all of them call it. With `background` a thread of each rank writes.

    The first rank makes the temporary folder, writes what is no part of anybody, and gives the folder its name once all
    ranks have told that their parts are on the disk and what their sha256 is.
    """

    def __init__(self, root: str | Path, keep: int, background: bool = False):
        self.root, self.keep, self.background = Path(root), keep, background
        # Of its own: ranks talk about a checkpoint while they train.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._thread = SaveThread()

    def write(
        self,
        checkpoint: Checkpoint,
        shards: Mapping[str, Mapping[str, torch.Tensor]],
        wait: bool = False,
        prune: bool = True,
    ) -> None:
        """Save; the tensors may change as soon as this returns.

        Args:
            checkpoint: its tables and state are those of the first rank.
            shards: {table: {name: this rank's part}}.
            prune: delete those beyond the newest `keep` afterwards.

        Raises:
            CheckpointError: this save failed, or the one before did in the background.
        """
        self.wait()
        folder = contextlib.ExitStack()
        place = self._shared(lambda: str(folder.enter_context(writing(self.root, checkpoint.step))))
        written = sharded.write(Path(place) / sharded.FOLDER, shards, self.group)
        keep = self.keep if prune else 0

        self._thread.start(lambda: self._complete(folder, Path(place), checkpoint, written, keep))
        if wait or not self.background:
            self.wait()

    def _complete(self, folder: contextlib.ExitStack, place: Path, checkpoint: Checkpoint, written, keep: int) -> None:
        own: dict[str, Any] = {}
        problem = ""
        try:
            written.result()
            for path in sharded.own_files(place / sharded.FOLDER, world()[0]):
                own[f"{sharded.FOLDER}/{path.name}"] = fingerprint(path, flush=True)
        except BaseException as error:  # DCP's own is none of Exception
            problem = f"rank {world()[0]}: {type(error).__name__}: {error}"
        told = [(own, problem)]
        if self.group is not None:
            told = [None] * world()[1]
            dist.all_gather_object(told, (own, problem), group=self.group)

        def close() -> None:
            with folder:
                if problems := [text for _, text in told if text]:
                    raise OSError(problems[0].splitlines()[0])
                files = write_tables(place, checkpoint.tables, checkpoint.state)
                for entries, _ in told:
                    files |= entries
                finish(self.root, place, checkpoint.step, files, 2, keep)

        self._shared(close)

    def _shared(self, work: Callable[[], Any]) -> Any:
        """What the first rank makes of it, told to all.

        Raises:
            CheckpointError: on every rank, where the first one failed.
        """
        told = [None, ""]
        if world()[0] == 0:
            try:
                told[0] = work()
            except CheckpointError as error:
                told[1] = str(error)
        if self.group is not None:
            dist.broadcast_object_list(told, group=self.group)
        if told[1]:
            raise CheckpointError(told[1])
        return told[0]

    def wait(self) -> None:
        """Until what was given is written by all ranks.

        Raises:
            CheckpointError: it could not be.
        """
        self._thread.wait()

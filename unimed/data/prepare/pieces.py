"""Preparation in pieces: made by several processes, kept until all are there, the same bytes for any number of them.

While a set is prepared its files lie in a hidden folder beside it, with a line for each finished piece. The same
command goes on from there; what was prepared with other settings, or from a file that was replaced, is made again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimed.files import FolderLock, append_json_line, plain, read_json_lines
from unimed.identity import identity_of
from unimed.progress import Progress
from unimed.workers import in_order

_LOG = "pieces.jsonl"


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The flag `--workers`."""
    parser.add_argument("--workers", type=_count, default=1, help="processes; the bytes are the same (default: 1)")


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


_count.__name__ = "int"  # what argparse calls it where a word is no number


@dataclass(frozen=True)
class Pieces:
    """`folder` is where the pieces write their files."""

    staging: Path
    identity: str

    @property
    def folder(self) -> Path:
        return self.staging / "made"

    def results(
        self, make: Callable[[], Callable[[Any], Any]], items: Sequence, keys: Sequence, workers: int, what: str
    ) -> Iterator[Any]:
        """The result of each item, plain values, in order; of those an earlier run finished as it was then.

        Args:
            make: called in each process; what it returns makes the piece of an item.
            keys: of each item, plain values: what its piece is made of (`unimed.identity.quick_stamp` of files).
            what: of a piece, for the progress.
        """
        wanted = [identity_of([self.identity, number, key]) for number, key in enumerate(keys)]
        log, known = self.staging / _LOG, {}
        if log.is_file():
            known = {line["key"]: line["result"] for _, line in read_json_lines(log, torn_end=True)}
        todo = [item for item, key in zip(items, wanted, strict=True) if key not in known]
        with Progress(what, len(items), len(items) - len(todo)) as progress, \
             closing(in_order(make, todo, min(workers, max(len(todo), 1)))) as made:  # fmt: skip
            for key in wanted:
                if key in known:
                    yield known[key]
                    continue
                result = plain(next(made))
                append_json_line(log, {"key": key, "result": result})
                progress.step()
                yield result


@contextmanager
def pieces_of(staging: Path, settings: Mapping) -> Iterator[Pieces]:
    """Pieces that are kept where the block is interrupted, and removed where it ends or the data are wrong.

    Args:
        staging: a hidden folder beside what is prepared.
        settings: what else decides the pieces.

    Raises:
        FolderInUseError: another process prepares the same.
    """
    with FolderLock(staging, "preparing data", beside=True):
        pieces = Pieces(staging, identity_of(plain(dict(settings))))
        pieces.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield pieces
        except ValueError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(staging, ignore_errors=True)

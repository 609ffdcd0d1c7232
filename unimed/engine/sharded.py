"""Tensors of several ranks in one folder, each writing and reading its own part (torch.distributed.checkpoint).

Files are safetensors, one per rank; where a part lies in its tensor stands in the header. So nothing is gathered,
nothing is pickled, and another number of ranks, or one process, reads the same tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

#: Folder of the parts within a checkpoint.
FOLDER = "shards"


class Described(NamedTuple):
    """A tensor that is kept: its whole shape, its type, and how many of its elements the files hold."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    elements: int


def write(folder: Path, tables: Mapping[str, Mapping[str, torch.Tensor]], group) -> Future:
    """Begin to write tables of tensors, of which each rank gives its part (DTensor) or all the same (tensor).

    Args:
        folder: on a file system that all ranks see.
        group: process group for the CPU that nobody else uses meanwhile; None for a single process.

    Returns:
        a future that is done when the parts of all ranks are written; the tensors may change already.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, async_save

    flat = _flat(tables)
    begun = async_save(
        flat,
        storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
        process_group=group,
        no_dist=group is None,
    )
    return getattr(begun, "upload_completion", begun)


def own_files(folder: Path, rank: int) -> list[Path]:
    """The files that a rank has written."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def describe(folder: Path) -> dict[str, dict[str, Described]]:
    """{table: {name: description}} of all tensors of a folder, from the headers of its files."""
    found: dict[str, dict[str, Described]] = {}
    for key, entry in _reader(folder).read_metadata().state_dict_metadata.items():
        table, _, name = key.partition("/")
        elements = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        found.setdefault(table, {})[name] = Described(tuple(entry.size), entry.properties.dtype, elements)
    return found


def read_into(folder: Path, tables: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Fill tensors in place, a DTensor with this rank's part alone.

    Raises:
        ValueError: a tensor is not there, has another shape, or a part of it is missing.
    """
    from torch.distributed.checkpoint import load

    there = describe(folder)
    for table, entries in tables.items():
        for name, tensor in entries.items():
            kept = there.get(table, {}).get(name)
            if kept is None or kept.shape != tuple(tensor.shape):
                found = "is not there" if kept is None else f"has shape {kept.shape}, {tuple(tensor.shape)} is needed"
                raise ValueError(f"{folder}: {table}/{name} {found}")
            if kept.elements < math.prod(kept.shape):
                raise ValueError(f"{folder}: a part of {table}/{name} is missing; was a file of a rank removed?")
    flat = _flat(tables)
    load(flat, storage_reader=_reader(folder), no_dist=not dist.is_initialized())


def read_whole(folder: Path, tables: Sequence[str] | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Whole tensors on the CPU, put together by this process alone; `tables` limits what is read."""
    from torch.distributed.checkpoint import load

    wanted = {
        table: {name: torch.empty(one.shape, dtype=one.dtype) for name, one in entries.items()}
        for table, entries in describe(folder).items()
        if tables is None or table in tables
    }
    if flat := _flat(wanted):
        load(flat, storage_reader=_reader(folder), no_dist=True)
    return wanted


def _flat(tables: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{table}/{name}": t.detach() for table, entries in tables.items() for name, t in entries.items()}


def _reader(folder: Path) -> Any:
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder))

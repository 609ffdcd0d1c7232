"""Records in containers: WebDataset shards (tar) and Hugging Face datasets (Arrow, Parquet), both read by index.

Training asks for any record at any time (`unimed.data.mixture`), so both are opened for random access: shards are read
at the offsets of their members, Arrow at its rows. Resuming needs no replay. `tools/prepare_data.py repack` writes both
from the record format of `data/formats.md`.
"""

from __future__ import annotations

import glob
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unimed.data.readers import remote
from unimed.data.readers.records import TASKS, RecordDataset, RecordError, check_record
from unimed.data.readers.shards import IMAGES, expand_shards, members_of
from unimed.data.readers.tars import ShardError, by_key
from unimed.io.errors import ImageError, MaskError, ReadError
from unimed.io.read import read, read_bytes
from unimed.io.remote import is_url, redacted
from unimed.registry import DATASETS


class _Contained(RecordDataset):
    """What both containers share: the bytes of a picture, told its format by the suffix of its name."""

    def _volume(self, record: dict, name):
        """Volumes are read by libraries that open files themselves."""
        content, suffixes = self._source(record, name), self._name_of(name)
        if suffixes.lower().rpartition(".")[2] in IMAGES:
            return self._tried(record, name, lambda *_: read_bytes(content, suffixes))
        with tempfile.TemporaryDirectory(prefix="unimed-") as folder:
            path = Path(folder) / f"content.{Path(suffixes).name}"
            path.write_bytes(content)
            try:
                return read(path)
            except ReadError as error:
                why = str(error).replace(str(path), suffixes)
                raise RecordError(f"{self.file}: record {record.get('id')}: {why}") from error

    def _tried(self, record: dict, name, work):
        try:
            return work(self._source(record, name), self._name_of(name))
        except (ReadError, ImageError, MaskError) as error:
            raise RecordError(f"{self.file}: record {record.get('id')}: {error}") from error

    def _name_of(self, name) -> str:
        return str(name)

    def _only(self, tasks, limit) -> None:
        if tasks is not None:
            if unknown := sorted(set(tasks) - set(TASKS)):
                raise RecordError(f"unknown task {', '.join(unknown)}; known are {', '.join(TASKS)}")
            self.records = _Chosen(self.records, [i for i, r in enumerate(self.records) if r["task"] in tasks])
        if limit is not None:
            self.records = _Chosen(self.records, range(min(limit, len(self.records))))


class _Chosen(Sequence):
    def __init__(self, records: Sequence, places: Sequence[int]):
        self.records, self.places = records, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int):
        return self.records[self.places[index]]


@DATASETS.register_module()
class ShardDataset(_Contained):
    """Records of uncompressed tar shards in the layout of WebDataset: files with one key stand together.

    Each key has `KEY.json`, a record of `data/formats.md` whose `image` (or `volume`) and masks name the rest of the
    file names after the key: `"image": "png"`, `"mask": "0.mask.png"`. Nothing is unpacked to disk.

    Args:
        shards: as of `expand_shards`: "data/train-*.tar", "data/train-{000000..000009}.tar", a list.
        tasks, limit: as of `RecordDataset`.

    Raises:
        ShardError, FileNotFoundError: there is no such shard.
        RecordError: a shard that is compressed, cut off, or holds a key without record.
    """

    def __init__(self, shards: str | Path | Sequence, tasks: Sequence[str] | None = None, limit: int | None = None):
        files = [str(path) for path in expand_shards(shards)]
        self.file = Path(files[0]) if len(files) == 1 else Path(files[0]).parent
        self.records = _ShardRecords(files)
        if tasks is None and limit is None:
            self.groups = self.records.starts
        self._only(tasks, limit)

    def _source(self, record: dict, name: str) -> bytes:
        shard, members, known = record["__members__"]
        if name.lower() not in members:
            raise FileNotFoundError(f"{shard}: record {record['id']} names {name}, which is not beside it")
        return _bytes_at(shard, *members[name.lower()], known)


class _ShardRecords(Sequence):
    """The records of all shards; a record is read when it is asked for, only places are kept in memory."""

    def __init__(self, files: Sequence[str]):
        self.places: list[tuple[str, str, dict[str, tuple[int, int]]]] = []
        self.stamps: dict[str, list[int]] = {}
        self.starts = [0]
        for file in files:
            self.stamps[file] = _stamp(file)
            for key, members in _members(file, self.stamps[file]).items():
                if "json" not in members:
                    raise RecordError(f"{file}: key {key} has no record {key}.json; a key ends at the first dot")
                self.places.append((file, key, members))
            self.starts.append(len(self.places))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        file, key, members = self.places[index]
        known = self.stamps[file]
        try:
            record = json.loads(_bytes_at(file, *members["json"], known))
        except ValueError as error:
            raise RecordError(f"{file}: {key}.json is not JSON ({error})") from error
        check_record(record, f"{file}: {key}.json")
        return {**record, "__members__": (file, members, known)}


def _stamp(file: str) -> list[int]:
    if not is_url(file) and not Path(file).exists():
        raise FileNotFoundError(f"{redacted(file)}: no such shard")
    return remote.stamp(file)


def _members(file: str, known: list[int]) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {rest of the name: (offset, size)}} in the order of the shard."""
    try:
        members, problem = members_of(file, known)
        keys = by_key(file, members)
    except ShardError as error:
        raise RecordError(f"{error}; unpack .tar.gz to .tar first") from error
    if problem:
        raise RecordError(f"{file}: cut off ({problem}); fetch it again")
    return {key: {rest: member[1:] for rest, member in parts.items()} for key, parts in keys.items()}


def _bytes_at(file: str, offset: int, size: int, known: list[int]) -> bytes:
    with remote.opened(file, known) as stream:
        stream.seek(offset)
        content = stream.read(size)
    if len(content) < size:
        raise RecordError(f"{file}: cut off at byte {offset + len(content)}; fetch it again")
    return content


@DATASETS.register_module()
class ArrowDataset(_Contained):
    """Records in a Hugging Face data set: a folder of `save_to_disk`, or Parquet files.

    Columns are the fields of a record. `image` (or `volume`) and `regions[].mask` hold {"bytes", "path"}, as the
    library's Image feature stores them; the suffix of `path` tells the format.

    Args:
        path: the folder, a Parquet file, or a pattern such as "data/train-*.parquet".
        split: of a folder that holds several.
        tasks, limit: as of `RecordDataset`.

    Raises:
        ImportError: the library `datasets` is not installed.
        FileNotFoundError: nothing is there.
        RecordError: a split or a column is missing.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
    ):
        self.file = Path(path)
        self.records = _ArrowRecords(_open_arrow(self.file, split), self.file)
        self._only(tasks, limit)

    def _source(self, record: dict, name) -> bytes:
        if not isinstance(name, dict) or not name.get("bytes"):
            raise RecordError(f"{self.file}: record {record['id']}: an image without bytes")
        return name["bytes"]

    def _name_of(self, name) -> str:
        return (name.get("path") if isinstance(name, dict) else None) or "content.png"


def _open_arrow(path: Path, split: str | None):
    try:
        import datasets
    except ImportError as error:
        raise ImportError("ArrowDataset needs the library datasets: `pip install unimed[train]`") from error
    if path.is_dir():
        opened = datasets.load_from_disk(str(path))
        if isinstance(opened, datasets.DatasetDict):
            if split not in opened:
                raise RecordError(f"{path}: no split {split!r}; it holds {', '.join(opened)}")
            opened = opened[split]
    else:
        files = sorted(glob.glob(str(path)))
        if not files:
            raise FileNotFoundError(f"{path}: no such folder or Parquet files")
        opened = datasets.concatenate_datasets(
            [datasets.Dataset.from_parquet(file, keep_in_memory=False) for file in files]
        )
    for name, feature in opened.features.items():
        if isinstance(feature, datasets.Image):
            opened = opened.cast_column(name, datasets.Image(decode=False))
    return opened


class _ArrowRecords(Sequence):
    def __init__(self, table, file: Path):
        self.table, self.file = table, file
        if missing := [name for name in ("id", "task", "question", "answer") if name not in table.column_names]:
            raise RecordError(
                f"{file}: column {', '.join(missing)} is missing; it holds {', '.join(table.column_names)}"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        record = {name: value for name, value in self.table[index].items() if value is not None}
        regions = [{k: v for k, v in region.items() if v is not None} for region in record.get("regions") or ()]
        record["regions"] = regions
        check_record(record, f"{self.file}: row {index}", paths=False)
        return record

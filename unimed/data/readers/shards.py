"""Image-text pairs in tar shards (webdataset layout), read at any place: `NAME.jpg` with `NAME.txt` or `NAME.json`.

A tar file is a row of headers and contents. One pass over the headers says where every sample lies; that index is kept,
and then each sample is one read, in any order. So shards take part in mixtures, weights, shuffling and exact resuming
like any other data set, and no skipped sample is ever read.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from unimed.data.readers import remote
from unimed.data.readers.tars import Member, ShardError, by_key, tar_members, twice
from unimed.data.wordings.captions import parse_captions
from unimed.files import cache_folder
from unimed.geometry import Geometry
from unimed.io.images import load as load_image
from unimed.io.raster import SUFFIXES
from unimed.io.remote import address_key, is_url, without_query
from unimed.io.write import write_npz
from unimed.registry import DATASETS
from unimed.structures import Sample

IMAGES = (*(suffix[1:] for suffix in SUFFIXES), "dcm", "dicom", "ima")
TEXTS = ("json", "txt")
#: Columns of an index: where image and text begin and how long they are (-1: not there), and which kind the text is.
COLUMNS = ("image", "image_size", "text", "text_size", "is_json")
#: Indices of other versions are made again.
INDEX_VERSION = 2


def expand_shards(patterns: str | Path | Sequence[str | Path]) -> list[Path | str]:
    """Paths from `a/{000001..000103}.tar`, `a/*.tar`, several joined by `::`, or a list of such; URLs stay texts.

    Raises:
        ShardError: a pattern with `*` that fits nothing, or no pattern.
    """
    if isinstance(patterns, (str, Path)):
        patterns = str(patterns).split("::")
    paths: list[str] = []
    for pattern in patterns:
        for text in _expand_braces(str(pattern)):
            text = text.removeprefix("file://")
            # A question mark of a URL begins its query.
            if any(sign in text for sign in ("*[" if text.startswith("http") else "*?[")):
                found = remote.find(text) if is_url(text) else sorted(glob.glob(text))
                if not found:
                    raise ShardError(f"{text}: no shard of that pattern is there")
                paths += found
            else:
                paths.append(text)
    if not paths:
        raise ShardError("no shard was given")
    return [path if is_url(path) else Path(path) for path in paths]


def _name(path: Path | str) -> str:
    """The name of a shard, without the query of a URL."""
    return Path(str(path).partition("?")[0] if is_url(path) else path).name


def _expand_braces(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    inside = found.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = span.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        words = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        words = inside.split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [text for word in words for text in _expand_braces(before + word + after)]


def read_index(path: Path | str) -> tuple[list[str], np.ndarray, str]:
    """Names and places of the samples of a tar file, and what is wrong with its end ("" where nothing is).

    A key ends at the first dot of the file's name, as WebDataset has it, so that `KEY.seg.png` is a further file of
    sample KEY. Files that fit no key this way (`1.2.840.7.png` beside `1.2.840.7.txt`) are samples of the name before
    their last dot: a name with dots is not left out.

    Raises:
        ShardError: the file is missing or no tar file, or a key has two images or two texts of one kind.
    """
    members, problem = members_of(path)
    plain, dotted = {}, {}
    order = {member: number for number, member in enumerate(members)}
    for key, parts in by_key(path, members).items():
        for rest, member in parts.items():
            if rest in IMAGES or rest in TEXTS:
                plain.setdefault(key, []).append((rest, member))
            elif rest.rpartition(".")[2] in IMAGES + TEXTS:
                name, _, suffix = member.name.removeprefix("./").rpartition(".")
                dotted.setdefault(name, []).append((key, suffix.lower(), member))
    for name, parts in dotted.items():
        suffixes = {suffix for _, suffix, _ in parts}
        whole = suffixes & set(IMAGES) and suffixes & set(TEXTS)
        if whole or parts[0][0] not in plain:  # else further files of a sample
            plain.setdefault(name, []).extend((suffix, member) for _, suffix, member in parts)
    samples = sorted(plain.items(), key=lambda sample: min(order[member] for _, member in sample[1]))
    rows = [_row(path, name, parts) for name, parts in samples]
    return [name for name, _ in samples], np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS)), problem


def members_of(path: Path | str, known: list[int] | None = None) -> tuple[list[Member], str]:
    """As `tar_members`, of a path or URL.

    Raises:
        ShardError: as `tar_members`; there is no such shard.
    """
    with remote.local(path, known or remote.stamp(path)) as place:
        try:
            return tar_members(place)
        except FileNotFoundError as error:
            raise ShardError(f"{path}: no such shard") from error
        except ShardError as error:
            raise ShardError(str(error).replace(str(place), str(path))) from error


def _row(path: Path | str, name: str, parts: list[tuple[str, Member]]) -> list[int]:
    row, image = [-1, 0, -1, 0, 0], None
    for suffix, member in parts:
        if suffix in IMAGES:
            if image is not None:
                raise twice(path, name, image, member)
            image, row[0:2] = member, [member.offset, member.size]
        elif row[2] < 0 or suffix == "json":
            row[2:5] = [member.offset, member.size, int(suffix == "json")]
    return row


@DATASETS.register_module()
class ImageTextShards:
    """Samples of tar shards. `labels["captions"]` holds all captions of an image, `labels["label"]` its stored label.

    The text is the published layout (`.txt`, captions joined by a tag of the source, see `parse_captions`) or JSON:
    `{"captions": [...], "weights": [...], "label": ...}`.

    Args:
        shards: see `expand_shards`; URLs are read through `unimed.data.readers.remote`.
        name: of the source, in messages and samples.
        index_dir: where indices are kept; `$UNIMED_CACHE/shards` or `~/.cache/unimed/shards` by default.
        compat: "reference" draws captions as the published training did.
        limit: use only so many samples.

    A sample that cannot be read raises `ShardError` on access; the trainer names it, counts it and goes on with a
    sample of another shard.

    Raises:
        ShardError: on construction, a shard is missing or no tar file, or all of them are empty.
    """

    def __init__(
        self,
        shards,
        name: str = "",
        index_dir: str | Path | None = None,
        compat: str | None = None,
        limit: int | None = None,
    ):
        self.paths = expand_shards(shards)
        self.name, self.compat = name, compat
        self.index_dir = Path(index_dir) if index_dir else cache_folder("shards")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self._index, self.paths))
        self.names = [names for names, _, _, _ in found]
        self.tables = [table for _, table, _, _ in found]
        self.stamps = [stamp for _, _, _, stamp in found]
        #: What is wrong with whole shards; such a shard gives one sample more, which raises when it is read.
        self.problems = [problem for _, _, problem, _ in found]
        counts = [len(table) + bool(problem) for table, problem in zip(self.tables, self.problems, strict=True)]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.length = int(self.starts[-1] if limit is None else min(limit, self.starts[-1]))
        #: Where each shard begins; `shuffle_buffer` reads one shard after the other.
        self.groups = np.minimum(self.starts, self.length)
        if self.length == 0:
            raise ShardError(f"{self.paths[0]}: no sample in {len(self.paths)} shard(s)")

    def __len__(self) -> int:
        return self.length

    def alternative(self, index: int, attempt: int) -> int:
        """Where to go on when a sample is broken: the same place, some shards further, as whole shards may be gone."""
        if len(self.paths) < 2:
            return (index + attempt) % self.length
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        other = (shard + attempt) % len(self.paths)
        start, stop = int(self.starts[other]), int(min(self.starts[other + 1], self.length))
        if stop <= start:
            return (index + attempt) % self.length
        return start + (index - int(self.starts[shard]) + attempt // len(self.paths)) % (stop - start)

    def __getitem__(self, index: int) -> Sample:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        path, number = self.paths[shard], index - int(self.starts[shard])
        if number == len(self.tables[shard]):
            raise ShardError(f"{path}: {self.problems[shard]}; samples after {number} are lost")
        key = self.names[shard][number].decode("utf-8")
        where = f"{path}: sample {key}"
        image, image_size, text, text_size, is_json = (int(v) for v in self.tables[shard][number])
        if image < 0:
            raise ShardError(f"{where} has no image (known are {', '.join(IMAGES)})")
        if text < 0:
            raise ShardError(f"{where} has no text (.txt or .json)")
        try:
            with remote.opened(path, self.stamps[shard]) as stream:
                stream.seek(image)
                data = stream.read(image_size)
                stream.seek(text)
                words = stream.read(text_size)
        except OSError as error:
            raise ShardError(f"{path}: the shard is gone or cannot be read ({error})") from error
        if len(data) < image_size or len(words) < text_size:
            raise ShardError(f"{where} ends early")
        image = load_image(data, name=where)
        return Sample(
            images=(image.pixels,),
            geometry=Geometry.pixels(source_format=image.geometry.source_format),
            sample_id=f"{_name(path)}/{key}",
            labels=self._labels(words, bool(is_json), where),
            source=self.name or Path(without_query(str(path)) if is_url(path) else path).parent.name,
        )

    def _labels(self, words: bytes, is_json: bool, where: str) -> dict:
        try:
            text = words.decode("utf-8")
            stored = json.loads(text) if is_json else {"captions": parse_captions(text, self.compat)}
        except ValueError as error:
            raise ShardError(f"{where}: its text is damaged ({error})") from error
        captions = tuple(str(c) for c in stored.get("captions") or ()) if isinstance(stored, dict) else ()
        if not captions or (self.compat != "reference" and not any(c.strip() for c in captions)):
            raise ShardError(f"{where} has an empty text")
        return {**stored, "captions": captions}

    def _index(self, path: Path | str):
        stamp = remote.stamp(path)
        named = address_key(str(path)) if is_url(path) else str(Path(path).resolve())
        kept = self.index_dir / f"{hashlib.sha256(str(named).encode()).hexdigest()[:24]}.npz"
        if kept.is_file():
            try:
                with np.load(kept, allow_pickle=False) as archive:
                    if archive["stamp"].tolist() == [INDEX_VERSION, *stamp]:
                        return archive["names"], archive["table"], str(archive["problem"]), stamp
            except (OSError, ValueError, KeyError):
                pass  # a damaged index is made again
        found, table, problem = read_index(path)
        # Five million names as Python strings would take half a gigabyte in every process.
        names = np.array([name.encode("utf-8") for name in found], dtype=bytes)
        arrays = {
            "names": names,
            "table": table,
            "problem": np.array(problem),
            "stamp": np.array([INDEX_VERSION, *stamp]),
        }
        try:
            write_npz(kept, arrays)
        except OSError:
            pass  # a cache that cannot be written costs time only
        return names, table, problem, stamp

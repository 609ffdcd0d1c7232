"""What a cohort is asked about: sources of every kind as records in a fixed order, made while they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unimed.data.readers.shards import expand_shards
from unimed.data.readers.tars import ShardError, by_key, tar_members
from unimed.identity import quick_stamp
from unimed.inference.asking import IMAGE_SUFFIXES, find_sources
from unimed.inference.cohort.manifests import MANIFEST_SUFFIXES, read_manifest
from unimed.inference.volume_files import SUFFIXES as VOLUME_SUFFIXES
from unimed.io.dicom_series import SUFFIXES as DICOM_SUFFIXES
from unimed.io.dicom_series import scan
from unimed.io.errors import ReadError
from unimed.io.remote import (
    PATIENCE_S,
    address_key,
    file_system,
    is_url,
    redacted,
    retried,
    stamp,
    stamp_of,
    without_query,
)
from unimed.names import result_name

#: What is looked for in shards and remote folders; local folders are searched as `unimed predict` does.
KNOWN = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, *DICOM_SUFFIXES)))


class CohortError(ValueError):
    """A cohort that cannot start or had to stop; the message says why, what is missing and what to do."""


@dataclass(frozen=True)
class CohortRecord:
    """One source of a cohort.

    Attributes:
        number: its place, from 0. name: of its results; numbers make names unique.
        source: what it is called in rows. place: absolute path or URL; one that ends in "/" is a folder.
        member, offset, size: of a file in a shard: its name, first byte and length.
        series: UID, where a folder holds several DICOM series.
        texts, site, modality: of a manifest, in place of those of the command.
        stamp: tells whether the file was replaced. problem: why it cannot be read, where that is known already.
    """

    source: str
    place: str
    number: int = 0
    name: str = ""
    member: str = ""
    offset: int = -1
    size: int = -1
    series: str = ""
    texts: tuple[str, ...] = ()
    site: str = ""
    modality: str = ""
    stamp: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values without what is not set; of a URL that holds keys its shown form and a digest (`address`)."""
        defaults = CohortRecord("", "")
        values = {key: value for key, value in asdict(self).items()
                  if key in ("number", "source", "place") or value != getattr(defaults, key)}  # fmt: skip
        if self.holds_keys:
            values |= {"place": without_query(self.place), "address": address_key(self.place)}
        return values

    @classmethod
    def from_dict(cls, values: dict, place: str = "") -> CohortRecord:
        """Inverse of `to_dict`; `place` is the whole URL where the kept one is not."""
        given = {key: value for key, value in values.items() if key != "address"}
        return cls(**{**given, "texts": tuple(given.get("texts", ())), "place": place or given["place"]})

    @property
    def holds_keys(self) -> bool:
        """Whether its URL has parts that are not to be written anywhere."""
        return is_url(self.place) and without_query(self.place) != self.place

    def inputs(self) -> dict[str, Any]:
        """What decides whether its row is finished: content of local files, stamps of what lies in shards and far."""
        how = {"texts": list(self.texts), "site": self.site, "modality": self.modality, "series": self.series}
        if not self.member and not is_url(self.place):
            return how | {"path": Path(self.place)}
        return how | {
            "origin": address_key(self.place),
            "member": [self.member],
            "at": [self.offset, self.size],
            "stamp": self.stamp,
        }


def find_records(
    words: Iterable[str], *, one_series: bool = False, nameless: bool = False, patience_s: float = PATIENCE_S
) -> Iterator[CohortRecord]:
    """Records of all sources, numbered in order.

    Args:
        words: files, folders, manifests (CSV, TSV, JSONL, Parquet), shards (.tar, also patterns), and URLs of them.
        one_series: the user names the series of each DICOM folder.
        nameless: names of results say nothing of the source.
        patience_s: see `unimed.io.remote.retried`.

    Raises:
        CohortError: a source that is not there or cannot be listed.
    """
    number = 0
    for word in words:
        for record in _of(str(word), one_series, patience_s):
            plain = f"{number:08d}"
            name = plain if nameless else f"{plain}-{result_name(record.name or record.member or record.source)}"
            yield replace(record, number=number, name=name)
            number += 1


def _of(word: str, one_series: bool, patience_s: float) -> Iterator[CohortRecord]:
    if word.startswith("file://"):
        word = word.removeprefix("file://")
    try:
        if _bare(word).endswith(MANIFEST_SUFFIXES):
            yield from _of_manifest(word, patience_s)
        elif _bare(word).endswith(".tar") and not os.path.isdir(word):
            for shard in [word] if is_url(word) else map(str, expand_shards(word)):
                yield from _of_shard(shard, patience_s)
        elif is_url(word):
            yield from _of_url(word, patience_s)
        else:
            yield from _of_path(Path(word), one_series)
    except (OSError, ShardError, ImportError) as error:
        raise CohortError(redacted(str(error))) from error


def _bare(word: str) -> str:
    return (without_query(word) if is_url(word) else word).lower()


def _of_path(place: Path, one_series: bool) -> Iterator[CohortRecord]:
    for path in find_sources([place]):
        source = path.relative_to(place).as_posix() if path != place else path.name
        record = CohortRecord(source or path.name, os.path.abspath(path), stamp=quick_stamp(path))
        if path.is_dir() and not one_series:
            yield from _series_of(path, record)
        else:
            yield record


def _series_of(folder: Path, record: CohortRecord) -> Iterator[CohortRecord]:
    """A record for each series of a DICOM folder that can be a volume."""
    try:
        volumes = [series for series in scan(folder)[0] if series.is_volume]
    except ReadError as error:
        yield replace(record, problem=str(error))
        return
    if len(volumes) < 2:
        yield record
        return
    for series in volumes:
        yield replace(record, series=series.uid, name=f"{record.source}-series-{series.first.get('SeriesNumber', '')}")


def _of_manifest(word: str, patience_s: float) -> Iterator[CohortRecord]:
    for row in read_manifest(word, patience_s):
        record = CohortRecord(
            row.source, row.place, name=row.id, texts=row.texts, site=row.site, modality=row.modality,
            problem=row.problem,
        )  # fmt: skip
        if row.problem or is_url(row.place):
            yield record  # a request for each row is made when it is worked on, not before
        else:
            yield replace(record, stamp=quick_stamp(row.place))


def _of_url(url: str, patience_s: float) -> Iterator[CohortRecord]:
    fs, path = file_system(url)
    where = without_query(url)
    folder = url.endswith("/") or retried(lambda: fs.isdir(path), where, patience_s)
    if not folder:
        yield CohortRecord(where.rpartition("/")[2], url, stamp=stamp(url, patience_s))
        return
    found = retried(lambda: fs.find(path, detail=True), where, patience_s)
    if not found:
        raise FileNotFoundError(f"{where}: nothing is there")
    below: dict[str, list[str]] = {}
    for name in sorted(found):
        below.setdefault(name.rpartition("/")[0], []).append(name)
    count = 0
    for parent, names in below.items():
        slices = [name for name in names if name.lower().endswith(DICOM_SUFFIXES)]
        if len(slices) > 1:  # a series: fetched and read as a folder
            tokens = "".join(stamp_of(found[name]) for name in slices)
            names = [name for name in names if name not in set(slices)]
            digest = hashlib.sha256(tokens.encode()).hexdigest()[:16]
            source = parent.removeprefix(path.rstrip("/")).strip("/") or where.rstrip("/").rpartition("/")[2]
            yield CohortRecord(source, f"{fs.unstrip_protocol(parent)}/", stamp=digest)
            count += 1
        for name in names:
            if name.lower().endswith(KNOWN):
                source = name.removeprefix(path.rstrip("/")).lstrip("/")
                yield CohortRecord(source, fs.unstrip_protocol(name), stamp=stamp_of(found[name]))
                count += 1
    if not count:
        raise FileNotFoundError(f"{where}: no image and no volume in it")


def _of_shard(shard: str, patience_s: float) -> Iterator[CohortRecord]:
    """A record per image or volume of a tar; one more, with the problem, where the tar is damaged."""
    label = without_query(shard).rpartition("/")[2] if is_url(shard) else Path(shard).name
    place = shard if is_url(shard) else os.path.abspath(shard)
    try:
        if is_url(shard):
            fs, path = file_system(shard)
            token = stamp(shard, patience_s)
            members, problem = retried(lambda: tar_members(path, fs.open), label, patience_s)
        else:
            token = quick_stamp(shard)
            members, problem = tar_members(shard)
        keys = by_key(label, members)
    except ShardError as error:
        yield CohortRecord(label, place, problem=redacted(str(error)))
        return
    for key, parts in keys.items():
        whole = [member for rest, member in parts.items() if f".{rest}" in KNOWN]
        dotted = [member for rest, member in parts.items() if f".{rest}".endswith(KNOWN)]
        for member in whole or dotted:
            yield CohortRecord(
                f"{label}/{member.name.removeprefix('./')}", place, name=key, member=member.name,
                offset=member.offset, size=member.size, stamp=token,
            )  # fmt: skip
    if problem:
        yield CohortRecord(label, place, problem=f"{label}: {problem}; samples after it are lost")

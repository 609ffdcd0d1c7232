"""Manifests of cohorts: CSV, TSV, JSONL and Parquet files with a row per source."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import posixpath
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unimed.files import read_json_lines, resolve_inside
from unimed.io.remote import fetch, is_url, without_query

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
#: Columns that may name the file, the first that is there counts.
PLACES = ("path", "image", "volume", "file", "url")
_BATCH_ROWS = 1024


class ManifestError(ValueError):
    """A manifest that cannot be used; file, line and remedy are named."""


@dataclass(frozen=True)
class ManifestRow:
    """A row: `source` as it stands there, `place` as path or URL, and `problem` where it may not be read."""

    source: str
    place: str
    id: str = ""
    texts: tuple[str, ...] = ()
    site: str = ""
    modality: str = ""
    problem: str = ""


def read_manifest(word: str, patience_s: float) -> Iterator[ManifestRow]:
    """Rows of a manifest in their order; columns: path (or image, volume, file, url), id, text, site, modality.

    Files are named relative to the manifest. Those of a local manifest lie in its folder, or in one that
    `UNIMED_DATA_ROOTS` names; those of a remote one below its URL. A row that names another is a problem of that row.

    Raises:
        ManifestError: no manifest, no column that names files, or no row.
        OSError: it cannot be read.
    """
    with contextlib.ExitStack() as held:
        if is_url(word):
            # A signature is of one file alone; a user and a password are of all of them.
            base, name = word.partition("?")[0].partition("#")[0].rpartition("/")[::2]
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="unimed-")))
            path = fetch(word, folder / name, patience_s)
        else:
            base, path = None, Path(word)
        shown, count = without_query(word) if base is not None else str(path), 0
        for line, values in _rows(path, shown):
            count += 1
            yield _row(values, f"{shown}:{line}", path.parent if base is None else base)
        if not count:
            raise ManifestError(f"{shown}: no row in it")


def _row(values: Mapping, where: str, base: Path | str) -> ManifestRow:
    column = next((name for name in PLACES if values.get(name) not in (None, "")), None)
    if column is None:
        raise ManifestError(f"{where}: names no file; a manifest has a column {', '.join(PLACES[:-1])} or {PLACES[-1]}")
    if values.get(None):  # csv.DictReader keeps what is beyond the header there
        raise ManifestError(f"{where}: more cells than the header has; put a text with commas in quotes")
    if not isinstance(values[column], str) or "\0" in values[column]:
        raise ManifestError(f"{where}: {column} is no path: {values[column]!r}")
    source, problem = values[column], ""
    place = source
    if is_url(source) and not source.startswith("file://"):
        shown = without_query(source)
    elif isinstance(base, Path):
        shown = source = source.removeprefix("file://")
        try:
            place = os.path.abspath(resolve_inside(base, source, where=where))
        except ValueError as error:
            problem = str(error)
    else:
        shown = source
        place = f"{base}/{posixpath.normpath(source)}"
        if source.startswith(("/", "file:")) or posixpath.normpath(source).startswith(".."):
            problem = f"{where}: {source!r} leads out of {without_query(str(base))}"
    texts = values.get("text", values.get("texts")) or ()
    texts = (texts,) if isinstance(texts, str) else texts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ManifestError(f"{where}: text is a question or a list of questions, not {texts!r}")
    texts = tuple(texts)
    named = {name: str(values.get(name) or "") for name in ("id", "site", "modality")}
    return ManifestRow(shown, place, texts=texts, problem=problem, **named)


def _rows(path: Path, shown: str) -> Iterator[tuple[int, Mapping]]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from read_json_lines(path, error=ManifestError)
    elif suffix == ".parquet":
        yield from _parquet(path, shown)
    else:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",")
            try:
                for row in reader:
                    text = row.get("text") or ""
                    if text.startswith("["):  # several questions, as a list in JSON
                        with contextlib.suppress(ValueError):
                            row["text"] = json.loads(text)
                    yield reader.line_num, row
            except (csv.Error, UnicodeDecodeError) as error:
                raise ManifestError(f"{shown}:{reader.line_num + 1}: not a table ({error})") from None


def _parquet(path: Path, shown: str) -> Iterator[tuple[int, Mapping]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(f"{shown}: Parquet needs `pip install unimed[ray]` ({error})") from None
    try:
        with ParquetFile(path) as file:
            known = [name for name in file.schema_arrow.names if name in (*PLACES, "id", "text", "texts", "site",
                                                                          "modality")]  # fmt: skip
            line = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=known):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except pyarrow.ArrowInvalid as error:
        raise ManifestError(f"{shown}: not a Parquet file, or a damaged one ({error})") from None

"""Shards whose bytes depend on the source alone, with checksums, written so that an interrupted run goes on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from unimed.data.packages import sha256_of
from unimed.data.prepare.pairs.sources import Pair, Source, SourceError, clean_captions, published_text
from unimed.files import append_json_line, read_json_lines, write_atomic, write_json_lines
from unimed.io.images import load
from unimed.progress import Progress as Steps
from unimed.workers import in_order

LAYOUTS = ("json", "published")
#: Pairs that a process reads together, and its threads.
_AT_A_TIME, _THREADS = 32, 8
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}


@dataclass
class Progress:
    """What is in a folder already: shards (name, samples, bytes, sha256, records read up to its end) and skips."""

    shards: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    noted: int = 0  # skips that stand in the file

    @property
    def records(self) -> int:
        return self.shards[-1]["records"] if self.shards else 0

    @property
    def samples(self) -> int:
        return sum(shard["samples"] for shard in self.shards)


def write_shards(
    source: Source,
    pairs: Iterator[Pair],
    out: str | Path,
    *,
    per_shard: int = 1000,
    layout: str = "json",
    max_skipped: int = 1000,
    limit: int | None = None,
    settings: dict | None = None,
    workers: int = 1,
    report=print,
) -> dict:
    """Write `dataset-000001.tar` and so on with the bytes of the images as they are.

    Args:
        pairs: in a fixed order; records of an earlier run are passed over without reading their images.
        layout: "json" writes `NAME.<kind of the image>` and `NAME.json` (captions, label, source file); "published"
            writes `NAME.jpg` and `NAME.txt` as the published scripts do.
        max_skipped: images that are missing or broken, and pairs without a caption, are skipped and named in
            `skipped.jsonl`, up to so many.
        limit: of records, for a trial.
        workers: processes that read and check images.

    Returns:
        the content of `manifest.json`, which is written last: source, settings, totals, every shard's sha256.

    Raises:
        SourceError: unknown layout, other settings than those of the shards that are there, a shard that was changed,
            too many skips, or nothing left to write.
    """
    if layout not in LAYOUTS:
        raise SourceError(f"layout {layout!r} is not known; choose one of: {', '.join(LAYOUTS)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    described = {"source": source.name, "layout": layout, "per_shard": per_shard, **(settings or {})}
    described = json.loads(json.dumps(described))
    progress = _resume(out, described)
    if progress.records:
        report(f"{source.name}: {progress.records} records are done ({len(progress.shards)} shards), going on")
    rest = islice(pairs, progress.records, limit)
    done, waiting = progress.records, []
    chunks = iter(lambda: list(islice(rest, _AT_A_TIME)), [])
    known = None if limit is None else limit - progress.records
    make = _Reading(replace(source, read=_unread), layout)
    with Steps("record", known) as steps, closing(in_order(make, chunks, workers)) as read:
        for chunk in read:
            for image, members, problem in chunk:
                done += 1
                if problem:
                    skip = {"record": done, "image": image, "reason": problem}
                    progress.skipped.append(skip)
                    if len(progress.skipped) > max_skipped:
                        raise SourceError(
                            f"{source.name}: {len(progress.skipped)} records skipped, more than {max_skipped}; the "
                            f"last is record {done}, {image}: {problem}. Correct the folder or raise --max-skipped"
                        )
                    continue
                waiting.append(members)
                if len(waiting) == per_shard:
                    _write(out, progress, waiting, done, described)
                    waiting = []
            steps.step(len(chunk))
    if waiting:
        _write(out, progress, waiting, done, described)
    _name_skipped(out, progress)
    if not progress.shards:
        raise SourceError(f"{source.name}: no record could be written; {len(progress.skipped)} were skipped")
    manifest = described | {
        "samples": progress.samples,
        "skipped": len(progress.skipped),
        "records": done,
        "shards": progress.shards,
    }
    write_atomic(out / "manifest.json", lambda path: path.write_text(json.dumps(manifest, indent=1), encoding="utf-8"))
    report(f"{source.name}: {progress.samples} pairs in {len(progress.shards)} shards, {len(progress.skipped)} skipped")
    return manifest


def _unread(*_):
    raise NotImplementedError("a process that reads images does not list them")


@dataclass(frozen=True)
class _Reading:
    """Reads and checks images, a few at a time: (image, members of the shard, problem) of each pair."""

    source: Source
    layout: str

    def __call__(self):
        return self.read_all

    def read_all(self, pairs: list[Pair]) -> list[tuple[str, list[tuple[str, bytes]], str]]:
        with ThreadPoolExecutor(_THREADS) as pool:  # reading waits for the disk
            return list(pool.map(self.read, pairs))

    def read(self, pair: Pair) -> tuple[str, list[tuple[str, bytes]], str]:
        data, problem = _read(self.source, pair)
        captions = clean_captions(pair) if self.layout == "json" else pair.captions
        problem = problem or ("" if any(c.strip() for c in captions) else "no caption")
        return str(pair.image), [] if problem else _members(self.source, pair, data, self.layout), problem


def _resume(out: Path, described: dict) -> Progress:
    """State after the last whole shard. A shard is whole once its line stands in `progress.jsonl`."""
    file, progress = out / "progress.jsonl", Progress()
    # Half a line of a killed run is left out: its shard is written again.
    for _, entry in read_json_lines(file, error=SourceError, torn_end=True) if file.is_file() else ():
        if entry["settings"] != described:
            raise SourceError(f"{out} holds shards of other settings ({entry['settings']}); choose another folder")
        shard = entry["shard"]
        path = out / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"] or sha256_of(path) != shard["sha256"]:
            raise SourceError(f"{path} is not the file that was written; remove {out} and prepare again")
        progress.shards.append(shard)
        progress.skipped += entry["skipped"]
    progress.noted = len(progress.skipped)
    return progress


def _write(out: Path, progress: Progress, members: list, records: int, described: dict) -> None:
    name = f"dataset-{len(progress.shards) + 1:06d}.tar"
    path = write_atomic(out / name, lambda temporary: _tar(temporary, members, progress.samples))
    shard = {"name": name, "samples": len(members), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    progress.shards.append(shard | {"records": records})
    skipped = progress.skipped[progress.noted :]
    progress.noted = len(progress.skipped)
    entry = {"shard": progress.shards[-1], "skipped": skipped, "settings": described}
    append_json_line(out / "progress.jsonl", entry)
    _name_skipped(out, progress)


def _name_skipped(out: Path, progress: Progress) -> None:
    write_json_lines(out / "skipped.jsonl", progress.skipped)


def _tar(path: Path, members: list, start: int) -> None:
    """Times, owners and modes are fixed, so that the same source gives the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, files in enumerate(members, start):
            for suffix, data in files:
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size, info.mtime, info.mode = len(data), 0, 0o644
                archive.addfile(info, io.BytesIO(data))


def _read(source: Source, pair: Pair) -> tuple[bytes, str]:
    path = pair.image
    for folder in source.options.get("folders", ()):  # of the catalog, not of the data
        if not path.is_file() and (path.parent / folder / path.name).is_file():
            path = path.parent / folder / path.name
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", f"the image cannot be read ({error.strerror})"
    try:
        load(data, name=path.name)  # as training will
    except ValueError as error:
        return b"", f"not an image ({error})"
    return data, ""


def _members(source: Source, pair: Pair, data: bytes, layout: str) -> list[tuple[str, bytes]]:
    if layout == "published":
        return [("jpg", data), ("txt", published_text(source, pair).encode("utf-8"))]
    described = {"captions": clean_captions(pair), "source": source.name, "file": pair.image.name}
    if pair.label:
        described["label"] = pair.label
    if pair.report and pair.report != "noreportpresent" and len(described["captions"]) > 1:
        # The report alone is drawn where there is one, as published.
        described["weights"] = [1.0] + [0.0] * (len(described["captions"]) - 1)
    return [(_suffix(data), data), ("json", json.dumps(described, ensure_ascii=False).encode("utf-8"))]


def _suffix(data: bytes) -> str:
    from PIL import Image

    if data[128:132] == b"DICM":
        return "dcm"
    with Image.open(io.BytesIO(data)) as image:
        return _SUFFIXES.get(image.format, "jpg")

"""Records into WebDataset shards or a Hugging Face data set: `repack data/sample out --to shards`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from unimed.data.prepare.pieces import add_workers, pieces_of
from unimed.data.readers.records import RecordDataset, RecordError
from unimed.files import atomic_folder, resolve_inside, write_atomic
from unimed.identity import quick_stamp


def add_arguments(parser) -> None:
    parser.description = __doc__
    parser.add_argument("source", help="folder in the record format (data/formats.md)")
    parser.add_argument(
        "destination", writes="folder", help="folder that gets one file or folder per split; must not hold them yet"
    )
    parser.add_argument("--to", choices=("shards", "arrow"), default="shards", help="default: shards")
    parser.add_argument("--splits", nargs="+", default=["train", "val", "test"], help="default: train val test")
    parser.add_argument("--per-shard", type=int, default=1000, help="records per shard (default: 1000)")
    add_workers(parser)


def run(args) -> int:
    destination, packed = Path(args.destination), 0
    for split in args.splits:
        if not (Path(args.source) / "records" / f"{split}.jsonl").is_file():
            print(f"warning: {args.source}: no split {split}, left out", file=sys.stderr)
            continue
        records = RecordDataset(args.source, split)
        if not len(records):
            print(f"warning: {args.source}: split {split} is empty, left out", file=sys.stderr)
            continue
        if args.to == "shards":
            written = write_shards(records, destination, split, args.per_shard, args.workers)
        else:
            written = [write_arrow(records, destination / split)]
        print(f"{split}: {len(records)} records in {', '.join(str(path) for path in written)}")
        packed += len(records)
    if not packed:
        raise FileNotFoundError(f"{args.source}: no record in the splits {', '.join(args.splits)}; see data/formats.md")
    return 0


def _files(record: dict) -> dict[str, str]:
    """{name in the container: path in the data set}: the picture, and the mask of each region."""
    kind = "image" if "image" in record else "volume"
    files = {_suffix(record[kind]): record[kind]}
    for number, region in enumerate(record.get("regions") or ()):
        if region.get("mask"):
            files[f"{number}.mask.{_suffix(region['mask'])}"] = region["mask"]
    return files


def _suffix(name: str) -> str:
    return Path(name).name.partition(".")[2]


def write_shards(
    records: RecordDataset, folder: str | Path, name: str, per_shard: int = 1000, workers: int = 1
) -> list[Path]:
    """Tar files `NAME-000000.tar` ... as `ShardDataset` and WebDataset read them; they appear when all are whole, and
    an interrupted run goes on. The same records give the same bytes.

    Raises:
        FileExistsError: shards of this name are there.
        ImportError: the library webdataset is not installed.
    """
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise ImportError("shards need the library webdataset: `pip install unimed[train]`") from error
    folder = Path(folder)
    if found := sorted(folder.glob(f"{name}-*.tar")):
        raise FileExistsError(f"{found[0]} is there already; remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    items, keys = [], []
    for start in range(0, len(records), per_shard):
        rows = [records.records[index] for index in range(start, min(start + per_shard, len(records)))]
        items.append((f"{name}-{start // per_shard:06d}.tar", start, rows))
        keys.append([rows, [quick_stamp(records.root / path) for row in rows for path in _files(row).values()]])
    with pieces_of(folder / f".preparing-{name}", {"per_shard": per_shard}) as pieces:
        make = _ShardOf(pieces.folder, records.root, records.file)
        written = list(pieces.results(make, items, keys, workers, "shard"))
        for file in written:
            if (pieces.folder / file).exists():  # else it was moved by a run that was killed right then
                os.replace(pieces.folder / file, folder / file)
    return [folder / file for file in written]


@dataclass(frozen=True)
class _ShardOf:
    """Writes a shard; `file` is where the records stand."""

    folder: Path
    root: Path
    file: Path

    def __call__(self):
        return self.write

    def write(self, item: tuple[str, int, list[dict]]) -> str:
        import webdataset

        name, start, rows = item

        def fill(temporary: Path) -> None:
            with webdataset.TarWriter(str(temporary), mtime=0) as writer:
                for index, record in enumerate(rows, start):
                    writer.write(self.entry(record, index))

        write_atomic(self.folder / name, fill)
        return name

    def entry(self, record: dict, index: int) -> dict:
        record = json.loads(json.dumps(record))
        kind = "image" if "image" in record else "volume"
        entry = {name: _bytes(self.root, self.file, record, path) for name, path in _files(record).items()}
        record[kind] = _suffix(record[kind])
        for number, region in enumerate(record.get("regions") or ()):
            if region.get("mask"):
                region["mask"] = f"{number}.mask.{_suffix(region['mask'])}"
        # Keys hold no dot: what follows the first one is the kind of file.
        return {"__key__": f"{index:08d}", "json": json.dumps(record).encode(), **entry}


def write_arrow(records: RecordDataset, folder: str | Path) -> Path:
    """A folder of Hugging Face's `Dataset.save_to_disk`, as `ArrowDataset` reads it.

    Raises:
        FileExistsError: the folder is there.
        ImportError: the library datasets is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Arrow needs the library datasets: `pip install unimed[train]`") from error
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; remove it or choose another folder")
    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    fields = {name: datasets.Value("string") for name in ("id", "task", "question", "answer")}
    known = sorted({name for record in _each(records) for name in record} - {"image", "volume", "regions", *fields})
    others = {
        name: datasets.List(datasets.Value("string")) if name == "choices" else datasets.Value("string")
        for name in known
    }
    region = {
        "phrase": datasets.Value("string"),
        "mask": image,
        "box_xyxy_px": datasets.List(datasets.Value("float64")),
        "present": datasets.Value("bool"),
        "phrase_span": datasets.List(datasets.Value("int64")),
    }
    features = datasets.Features(
        {**fields, **others, "image": image, "volume": image, "regions": datasets.List(region)}
    )

    def rows():
        for record in _each(records):
            row = dict.fromkeys(features) | {k: v for k, v in record.items() if k in features}
            for kind in ("image", "volume"):
                row[kind] = _image(records, record, record.get(kind))
            row["regions"] = [
                dict.fromkeys(region) | entry | {"mask": _image(records, record, entry.get("mask"))}
                for entry in record.get("regions") or ()
            ]
            yield row

    from datasets.exceptions import DatasetGenerationError

    with tempfile.TemporaryDirectory(prefix="unimed-") as cache, atomic_folder(folder) as temporary:
        try:
            table = datasets.Dataset.from_generator(rows, features=features, cache_dir=cache)
        except DatasetGenerationError as error:
            raise (error.__cause__ if isinstance(error.__cause__, RecordError) else error) from None
        table.save_to_disk(str(temporary))
    return folder


def _each(records: RecordDataset):
    return (records.records[index] for index in range(len(records)))


def _image(records: RecordDataset, record: dict, name: str | None) -> dict | None:
    return None if not name else {"bytes": _bytes(records.root, records.file, record, name), "path": Path(name).name}


def _bytes(root: Path, file: Path, record: dict, name: str) -> bytes:
    """The content of a file of the data set; what lies elsewhere is nobody's to pack."""
    where = f"{file}: record {record['id']}"
    path = resolve_inside(root, name, where=where, error=RecordError)
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{where} names {name}, which cannot be read ({error.strerror})") from error

"""Data card: a prepared set described for people, from its records (README.md beside `records/`).

Nobody's name or number stands in it: patients are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from unimed.data.licenses import UNKNOWN, asks_for, hub_license, strictest
from unimed.data.readers.records import RecordError, read_records
from unimed.files import write_text
from unimed.markup import for_markdown

NAME = "README.md"


def add_arguments(parser) -> None:
    """Add the arguments of `unimed prepare card`."""
    parser.add_argument("folder", help="a prepared set, with records/*.jsonl")
    parser.add_argument("--name", default="", help="of the set (default: the name of the folder)")
    parser.add_argument("--description", default="", help="one or two sentences about it")
    parser.add_argument("--out", writes="file", help="file to write (default: README.md of the folder)")


def run(args) -> int:
    """Write the card and say where."""
    text = data_card(args.folder, args.name, args.description)
    print(write_text(args.out or Path(args.folder) / NAME, text))
    return 0


def data_card(folder: str | Path, name: str = "", description: str = "") -> str:
    """Text of the card: counts per part, kinds of image, origin of labels, licenses, and patients in several parts.

    Raises:
        RecordError: no records, or broken ones.
    """
    folder = Path(folder)
    parts = {path.stem: read_records(path) for path in sorted((folder / "records").glob("*.jsonl"))}
    rows = [row for records in parts.values() for row in records]
    if not rows:
        raise RecordError(f"{folder}: holds no records/*.jsonl; see docs/data.md")
    licenses = Counter(str(row.get("license", row.get("licence")) or UNKNOWN) for row in rows)
    text = strictest(licenses)
    title = name or folder.resolve().name
    lines = [
        "---", f"license: {hub_license(text)}", "tags: [medical, unimed]", "---",
        f"# {title}", "", description or "Questions about biomedical images, with places.", "",
        "**For research only.** Not made to develop or to test a medical device.", "",
        "## Intended use", "",
        "- Training and comparing models on the tasks below; the parts stand for what the table says, and no more.",
        "- Not for: conclusions about patients, or about people and devices that are not in it.", "",
        "## Records", "", *_table(parts, lambda row: str(row.get("task", ""))), "",
        "| part | records | images and volumes | patients |", "|---|---|---|---|",
        *(f"| {part} | {len(records)} | {_distinct(records, 'image', 'volume')} | {_distinct(records, 'patient_id')} |"
          for part, records in parts.items()),
        "", _shared(parts), "",
        "## Images", "",
        *_table(parts, lambda row: f"{row.get('modality') or UNKNOWN}, {row.get('site') or UNKNOWN}"),
        "", "## Labels", "", "Who or what made them:", "",
        *_table(parts, lambda row: str(row.get("label_origin") or UNKNOWN)),
        "", "## Licenses", "", "| license | records | asks for |", "|---|---|---|",
        *(f"| {for_markdown(one)} | {count} | {asks_for(one)[1]} |" for one, count in sorted(licenses.items())),
        "", f"**Strictest: {for_markdown(text)}** (asks for {asks_for(text)[1]}). It binds the whole.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(parts: dict[str, list[dict]], key: Callable[[dict], str]) -> list[str]:
    counts = {part: Counter(map(key, records)) for part, records in parts.items()}
    names = sorted({name for counter in counts.values() for name in counter})
    return [
        f"| | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|",
        *(f"| {for_markdown(name)} | {' | '.join(str(counts[part][name]) for part in parts)} |" for name in names),
    ]  # fmt: skip


def _distinct(records: Iterable[dict], *fields: str) -> int:
    return len({str(row[field]) for row in records for field in fields if row.get(field)})


def _shared(parts: dict[str, list[dict]]) -> str:
    """A sentence on patients who are in several parts."""
    of_part = ({row["patient_id"] for row in records if row.get("patient_id")} for records in parts.values())
    owners = Counter(patient for patients in of_part for patient in patients)
    several = sum(count > 1 for count in owners.values())
    return f"**{several} patients are in several parts.**" if several else "No patient is in two parts."

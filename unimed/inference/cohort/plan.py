"""The plan of a cohort: which records there are and how they are cut into parts; the same on every further run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from unimed.files import json_text, read_json, read_json_lines, write_json_lines, write_text
from unimed.inference.cohort.records import CohortError, CohortRecord
from unimed.inference.runs import other_settings

JOB, RECORDS, MISSING = "cohort.json", "records.jsonl", "missing.jsonl"
#: Formats of the rows.
FORMS = ("parquet", "jsonl")


@dataclass(frozen=True)
class Part:
    """Records `first` to `first + count - 1`, which begin at a byte of `records.jsonl`.

    `places` are the (number, URL) of those whose URL holds keys: they are handed on and kept nowhere.
    """

    number: int
    first: int
    count: int
    offset: int
    places: tuple[tuple[int, str], ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        return f"{self.number:06d}"


@dataclass(frozen=True)
class Plan:
    """A cohort as it stands on the disk."""

    folder: Path
    parts: tuple[Part, ...]
    form: str

    @property
    def rows(self) -> int:
        return self.parts[-1].first + self.parts[-1].count

    def is_finished(self, part: Part) -> bool:
        """Whether all records of a part have their row and none of them failed; failed ones are tried again."""
        failed = self.folder_of(part) / "failed.jsonl"
        return self.rows_of(part).is_file() and not (failed.is_file() and failed.stat().st_size)

    def folder_of(self, part: Part) -> Path:
        return self.folder / "parts" / part.name

    def rows_of(self, part: Part) -> Path:
        return self.folder / "rows" / f"part-{part.name}.{self.form}"


def read_part(folder: Path, part: Part) -> list[CohortRecord]:
    """The records of a part."""
    with open(folder / RECORDS, "rb") as stream:
        stream.seek(part.offset)
        rows = [json.loads(stream.readline()) for _ in range(part.count)]
    places = {number: place for number, place in part.places}
    return [CohortRecord.from_dict(row, places.get(row["number"], "")) for row in rows]


def make_plan(
    folder: Path, records: Iterable[CohortRecord], settings: Mapping, part_rows: int, form: str, restart: bool = False
) -> Plan:
    """Write the plan, or go on with the one that is there.

    Sources that were replaced since are found by size, time and what a server tells; their parts are looked at again.

    Args:
        records: held one at a time.
        settings: what decides the results, as `run_settings` gives them.

    Raises:
        CohortError: no record; a folder with other settings, or with a plan of other sources.
    """
    settings = {**settings, "part_rows": part_rows, "rows": form}
    if restart:
        for name in (JOB, RECORDS, MISSING):
            (folder / name).unlink(missing_ok=True)
        for name in ("parts", "rows"):
            shutil.rmtree(folder / name, ignore_errors=True)
    elif (folder / JOB).is_file() and (before := read_json(folder / JOB, error=CohortError)) != settings:
        raise CohortError(other_settings(folder, before, settings))
    kept, candidate = folder / RECORDS, folder / f"new-{RECORDS}"
    places: list[tuple[int, str]] = []

    def rows() -> Iterator[dict]:
        for record in records:
            if record.holds_keys:
                places.append((record.number, record.place))
            yield record.to_dict()

    write_json_lines(candidate, rows())
    if not candidate.stat().st_size:
        candidate.unlink()
        raise CohortError("no source was found")
    if kept.is_file() and (folder / JOB).is_file():
        plan = Plan(folder, tuple(_parts(kept, part_rows)), form)
        for part in _changed_parts(kept, candidate, plan):
            plan.rows_of(part).unlink(missing_ok=True)
    candidate.chmod(0o600)  # names of files may say who was examined
    candidate.replace(kept)
    write_text(folder / JOB, json_text(settings))
    by_part: dict[int, list[tuple[int, str]]] = {}
    for number, place in places:
        by_part.setdefault(number // part_rows, []).append((number, place))
    parts = (replace(one, places=tuple(by_part.get(one.number, ()))) for one in _parts(kept, part_rows))
    return Plan(folder, tuple(parts), form)


def _parts(records: Path, part_rows: int) -> Iterator[Part]:
    start = place = first = 0
    number = -1
    with open(records, "rb") as stream:
        for number, line in enumerate(stream):
            if number - first == part_rows:
                yield Part(first // part_rows, first, part_rows, start)
                start, first = place, number
            place += len(line)
    if number >= 0:
        yield Part(first // part_rows, first, number + 1 - first, start)


def _changed_parts(kept: Path, candidate: Path, plan: Plan) -> list[Part]:
    """Parts with a source that was replaced.

    Raises:
        CohortError: a source was added, removed or asked something else; the first one is named.
    """
    changed: dict[int, Part] = {}
    size = plan.parts[0].count
    for (number, before), (_, now) in zip_longest(
        read_json_lines(kept, error=CohortError), read_json_lines(candidate), fillvalue=(0, {})
    ):
        if before == now:
            continue
        if not before or not now or {**before, "stamp": "", "size": 0, "offset": 0} != {
            **now, "stamp": "", "size": 0, "offset": 0,
        }:  # fmt: skip
            candidate.unlink()
            number = (now or before)["number"]
            what = f"{before.get('source', 'nothing')!r}, now {now.get('source', 'nothing')!r}"
            raise CohortError(
                f"{plan.folder} holds a cohort of other sources (record {number} was {what}); "
                "choose another folder or --restart"
            )
        changed[(number - 1) // size] = plan.parts[(number - 1) // size]
    return list(changed.values())

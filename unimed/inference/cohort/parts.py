"""One part of a cohort, worked on in one process: a run over its records, and then its rows, whole or not there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unimed.files import is_of_the_disk, json_line, write_atomic, write_json_lines
from unimed.inference.cohort.copies import local_copy
from unimed.inference.cohort.plan import Part, Plan, read_part
from unimed.inference.cohort.records import CohortRecord
from unimed.inference.runs import run_cases
from unimed.io.errors import ReadError
from unimed.io.remote import PATIENCE_S, UnreachableError, redacted
from unimed.locks import FolderInUseError
from unimed.names import forget_names
from unimed.structures import Case

#: So many processes may die over one record in one run of the command; then it counts as failed.
MOST_DEATHS = 3
#: How long the worker of a part is waited for that seems to be alive: on another machine, until its lock is stale.
_IN_USE_S = 180.0
_MARK = ".working.json"


class ProcessDiedError(RuntimeError):
    """A record over which processes died: out of memory, or a crash of a library."""


class Predictor(Protocol):
    """What is asked about each record. It is pickled, and loads its model when it is called first."""

    #: Called before the first record of a process.
    def prepare(self) -> None: ...

    def __call__(self, record: CohortRecord, path: Path, folder: Path) -> Mapping[str, Any]:
        """The row of a record, plain values, after its files (`record.name` and a suffix) were written to `folder`."""


@dataclass
class PartWorker:
    """Works on parts of a cohort; one in each process.

    Args:
        folder, form: of the `Plan`.
        identity: of the job, so that parts of different jobs never mix.
        token: of this run of the command.
    """

    folder: Path
    form: str
    predictor: Predictor
    identity: str
    token: str = ""
    patience_s: float = PATIENCE_S
    prepared: bool = field(default=False, repr=False)

    def __call__(self, part: Part) -> dict:
        """{"part", "rows", "failed", "skipped", "stopped"}: `stopped` says what hinders all further records, or ""."""
        outcome = {"part": part.number, "rows": part.count, "failed": 0, "skipped": 0, "stopped": ""}
        try:
            if not self.prepared:
                self.predictor.prepare()
                self.prepared = True
            report = _waited(lambda: self._work(part))
            return outcome | {"failed": len(report.failed), "skipped": report.skipped}
        except (OSError, FolderInUseError) as error:
            return outcome | {"stopped": redacted(f"{type(error).__name__}: {error}")}

    def _work(self, part: Part):
        plan = Plan(self.folder, (part,), self.form)
        folder, records = plan.folder_of(part), read_part(self.folder, part)
        by_name = {record.name: record for record in records}
        cases = [Case(record.name, record.inputs()) for record in records]
        mark = _Mark(folder / _MARK, self.token)

        def predict(batch: Sequence[Case]) -> list[Mapping]:
            (case,) = batch
            record = by_name[case.name]
            _remove_files(folder, record)  # of an earlier content, or of a process that died over it
            try:
                return [self._answer(record, mark, folder)]
            except Exception:
                _remove_files(folder, record)
                raise

        folder.mkdir(parents=True, exist_ok=True)
        report = run_cases(cases, predict, folder, settings={"cohort": self.identity}, ends=_ends_all, log=False)
        mark.remove()  # before the rows, with which the part is finished
        _write_rows(plan.rows_of(part), _rows(records, report, f"parts/{part.name}"), self.form)
        forget_names(folder)
        return report

    def _answer(self, record: CohortRecord, mark: _Mark, folder: Path) -> Mapping[str, Any]:
        if record.problem:
            raise ReadError(record.problem)
        if mark.deaths.get(record.name, 0) >= MOST_DEATHS:
            raise ProcessDiedError(f"{MOST_DEATHS} processes died over it: out of memory, or a crash of a library")
        mark.set(record.name)
        with local_copy(record, self.folder / ".scratch", self.patience_s) as path:
            return self.predictor(record, path, folder)


def _remove_files(folder: Path, record: CohortRecord) -> None:
    """Remove what was written about a record; its number begins all names."""
    for path in folder.glob(f"{record.number:08d}[-.]*"):
        path.unlink(missing_ok=True)


def _ends_all(error: Exception) -> bool:
    return isinstance(error, UnreachableError | ImportError) or is_of_the_disk(error)


def _waited(work: Callable):
    """`work()`, once nobody else works there: a worker that was given up may still be alive."""
    end = time.monotonic() + _IN_USE_S
    while True:
        try:
            return work()
        except FolderInUseError:
            if time.monotonic() > end:
                raise
        time.sleep(0.5)


class _Mark:
    """Which record is worked on, so that the next process knows over which one the last died."""

    def __init__(self, path: Path, token: str):
        self.path, self.token, self.deaths, self.stream = path, token, {}, None
        try:
            found = json.loads(path.read_bytes())
            if found["run"] == token:
                self.deaths = dict(found["deaths"])
                self.deaths[found["case"]] = self.deaths.get(found["case"], 0) + 1
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or torn by the death of its process

    def set(self, case: str) -> None:
        self.stream = self.stream or open(self.path, "wb", buffering=0)
        self.stream.seek(0)
        self.stream.write(json.dumps({"run": self.token, "case": case, "deaths": self.deaths}).encode())
        self.stream.truncate()

    def remove(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.path.unlink(missing_ok=True)


def _rows(records: Sequence[CohortRecord], report, place: str) -> list[dict]:
    """A row per record, finished or failed, in order."""
    found = {row["case"]: row for row in report.rows}
    rows = []
    for record in records:
        row = dict(found.get(record.name, {}))
        for name in ("case", "content", "source", "source_id"):
            row.pop(name, None)
        files = [f"{place}/{name}" for answer in row.get("answers", ()) for name in answer.get("files", ())]
        texts = [answer["text"] for answer in row.get("answers", ()) if "text" in answer]
        rows.append(
            {"number": record.number, "case": record.name, "source": record.source,
             "error": report.failed.get(record.name), "texts": texts, "files": files, "row": row}
        )  # fmt: skip
    return rows


def _write_rows(path: Path, rows: list[dict], form: str) -> None:
    if form == "jsonl":
        write_json_lines(path, rows)
        return
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    schema = pyarrow.schema(
        {"number": pyarrow.int64(), "case": text, "source": text, "error": text, "texts": pyarrow.list_(text),
         "files": pyarrow.list_(text), "row": text}
    )  # fmt: skip
    rows = [row | {"row": json_line(row["row"]).rstrip("\n")} for row in rows]
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    write_atomic(path, lambda temporary: parquet.write_table(table, temporary))

"""Running a cohort: the plan, an engine that works on its parts, and what became of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimed import threads
from unimed.files import FolderLock, write_json_lines
from unimed.inference.cohort.parts import PartWorker, Predictor
from unimed.inference.cohort.plan import FORMS, MISSING, Part, Plan, make_plan, read_part
from unimed.inference.cohort.ray_engine import RayError, on_ray
from unimed.inference.cohort.records import CohortError, find_records
from unimed.io.remote import PATIENCE_S, is_url, without_query
from unimed.progress import Progress, logged, stage
from unimed.workers import WorkersDiedError, as_finished

ENGINES = ("local", "ray")
#: Records of a part: few, so that work is spread evenly; many, so that there are not too many files.
PART_ROWS = 64


@dataclass
class CohortReport:
    """What became of a cohort: records in all, with a row, failed, and finished before; `stopped` says why it ended
    before its end, and `missing` which rows are not there ("64-127, 192-255")."""

    rows: int
    finished: int = 0
    failed: int = 0
    skipped: int = 0
    stopped: str = ""
    missing: str = ""

    @property
    def exit_code(self) -> int:
        """0 where every record has an answer, 2 where some have, 1 where none has."""
        answered = self.finished - self.failed
        return 0 if answered == self.rows else 2 if answered else 1


def default_form() -> str:
    """ "parquet" where pyarrow is installed, else "jsonl"."""
    with contextlib.suppress(ImportError):
        import pyarrow.parquet  # noqa: F401

        return "parquet"
    return "jsonl"


def run_cohort(
    folder: str | Path,
    words: Sequence[str],
    predictor: Predictor,
    settings: Mapping,
    *,
    engine: str = "local",
    workers: int = 1,
    part_rows: int = PART_ROWS,
    form: str | None = None,
    restart: bool = False,
    gpus_each: float | None = None,
    one_series: bool = False,
    nameless: bool = False,
    patience_s: float = PATIENCE_S,
) -> CohortReport:
    """Work on all records that have no row yet; the bytes of rows and files depend on neither engine nor workers.

    Args:
        folder: of the cohort, see the package; on a cluster all machines must see it.
        words: sources, see `find_records`.
        settings: what decides the answers, plain values; the job goes on only with the same.
        engine: "local" (processes of this machine; one is this process itself) or "ray".
        part_rows: records of a part.
        form: of the rows, "parquet" or "jsonl"; by default what `default_form` says.
        restart: forget an earlier cohort in this folder.
        gpus_each: of an actor of Ray.
        one_series, nameless, patience_s: as of `find_records`.

    Raises:
        CohortError: it cannot start.
        FolderInUseError: another command works in the folder.
    """
    folder, form = Path(folder).absolute(), form or default_form()
    if engine not in ENGINES or form not in FORMS:
        raise CohortError(f"engine {engine!r}, rows {form!r}: known are {', '.join(ENGINES)} and {', '.join(FORMS)}")
    if min(workers, part_rows) < 1:
        raise CohortError(f"{workers} workers, {part_rows} rows in a part: both are at least 1")
    if (engine == "ray" or workers > 1) and any(word.startswith("memory://") for word in words):
        raise CohortError("memory:// lives in one process; use --engine local --workers 1")
    for word in words:
        place = Path(word.removeprefix("file://"))
        if not is_url(str(place)) and place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
            raise CohortError(
                f"{folder} lies in the source {word}, and results would be sources; choose another folder"
            )
    threads_each = threads.wanted() or 1
    kept = {**settings, "sources": [_shown(word) for word in words], "threads": threads_each}
    with FolderLock(folder, "a cohort"), logged(folder):
        with stage("looking for sources"):
            records = find_records(words, one_series=one_series, nameless=nameless, patience_s=patience_s)
            plan = make_plan(folder, records, kept, part_rows, form, restart)
        identity = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]
        worker = PartWorker(folder, form, predictor, identity, secrets.token_hex(8), patience_s)
        return _run(plan, worker, engine, workers, threads_each, gpus_each)


def _shown(word: str) -> str:
    """A source as the job keeps it: no keys of URLs, and of this machine the name alone."""
    return without_query(word) if "://" in word else os.path.basename(os.path.abspath(word))


def _run(plan: Plan, worker: PartWorker, engine: str, workers: int, threads_each: int, gpus_each) -> CohortReport:
    (plan.folder / "rows").mkdir(parents=True, exist_ok=True)
    todo = [part for part in plan.parts if not plan.is_finished(part)]
    before = plan.rows - sum(part.count for part in todo)
    report = CohortReport(plan.rows, finished=before, skipped=before)
    workers = max(1, min(workers, len(todo)))
    try:
        with Progress("row", plan.rows, before) as progress:
            if todo:
                with contextlib.closing(_outcomes(worker, todo, engine, workers, threads_each, gpus_each)) as outcomes:
                    for outcome in outcomes:
                        if outcome["stopped"]:
                            report.stopped = outcome["stopped"]
                            break
                        report.finished += outcome["rows"]
                        report.failed += outcome["failed"]
                        report.skipped += outcome["skipped"]
                        progress.step(outcome["rows"])
    except (WorkersDiedError, RayError) as error:
        report.stopped = str(error)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"{report.finished} of {plan.rows} rows are finished and kept in {plan.folder}; the same command goes on"
        ) from stop
    _name_missing(plan, report)
    shutil.rmtree(plan.folder / ".scratch", ignore_errors=True)
    for place in (plan.folder / "rows").glob(".unfinished-*"):
        place.unlink(missing_ok=True)  # of killed workers; none is at work now
    return report


def _outcomes(worker: PartWorker, todo: Sequence[Part], engine: str, workers: int, threads_each: int, gpus_each):
    if engine == "ray":
        yield from on_ray(worker, todo, workers, threads_each, gpus_each)
    elif workers == 1:
        with threads.chosen(threads_each):
            yield from map(worker, todo)
    else:
        made = as_finished(_Same(worker), todo, workers, threads_each=threads_each)
        with contextlib.closing(made):
            yield from (outcome for _, outcome in made)


@dataclass(frozen=True)
class _Same:
    """Hands a worker to a process."""

    worker: PartWorker

    def __call__(self) -> PartWorker:
        return self.worker


def _name_missing(plan: Plan, report: CohortReport) -> None:
    """Say which records have no row, and keep the list in `missing.jsonl` where the disk still takes it."""
    gone = [part for part in plan.parts if not plan.rows_of(part).is_file()]
    (plan.folder / MISSING).unlink(missing_ok=True)
    if not gone:
        return
    spans: list[list[int]] = []
    for part in gone:
        if spans and spans[-1][1] == part.first - 1:
            spans[-1][1] = part.first + part.count - 1
        else:
            spans.append([part.first, part.first + part.count - 1])
    shown = [f"{first}-{last}" for first, last in spans]
    report.missing = ", ".join(shown[:20]) + (f" and {len(shown) - 20} more spans" if len(shown) > 20 else "")

    def rows() -> Iterator[dict]:
        for part in gone:
            for record in read_part(plan.folder, part):
                yield {"number": record.number, "case": record.name, "source": record.source, "why": report.stopped}

    with contextlib.suppress(OSError):
        write_json_lines(plan.folder / MISSING, rows())

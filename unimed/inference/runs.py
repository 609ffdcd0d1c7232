"""Work through many cases: batched, resumable, every failure named, results whole or not there.

A run folder holds

- `cases.jsonl`: one line per finished case, written as soon as the case is done;
- `failed.jsonl`: one line per case that raised, with the kind and text of the error;
- `run.json`: the settings of the run, so that results of different settings never mix.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimed.evaluation.tables import write_cases
from unimed.files import plain, write_atomic
from unimed.structures import Case


class FolderError(ValueError):
    """A run that cannot start: two cases of one name, or a folder with results of other settings."""


@dataclass
class FolderReport:
    """What became of the cases of a run. `rows` has every finished case in the order of the cases given, also those of
    earlier runs; `failed` maps the names of broken cases to what happened; `skipped` counts cases finished before."""

    rows: list[dict]
    failed: dict[str, str]
    skipped: int = 0

    @property
    def exit_code(self) -> int:
        """0 where every case was finished, 2 where some were, 1 where none was."""
        if not self.failed:
            return 0
        return 2 if self.rows else 1


def run_cases(
    cases: Iterable[Case],
    predict: Callable[[list[Case]], Sequence[Mapping]],
    work_dir: str | os.PathLike,
    *,
    settings: Mapping[str, Any],
    batch_size: int = 1,
    restart: bool = False,
    progress: bool | None = None,
) -> FolderReport:
    """Call `predict` on batches of the cases that are not finished.

    Args:
        cases: their names must differ.
        predict: batch -> one row per case (JSON-ready; numpy numbers are converted). It writes its own files first: a
            case counts as finished once its row is in `cases.jsonl`. If a batch raises, its cases are tried one by one,
            and those that raise alone are reported as failed and tried again in the next run.
        settings: what decides the results (model, flags); kept in `run.json`.
        restart: forget earlier results.
        progress: a bar on the terminal; by default where standard error is one.

    Raises:
        FolderError: two cases of one name, or `work_dir` holds results of other settings (both are shown).
    """
    cases = list(cases)
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        places = [str(next(iter(case.inputs.values()), "")) for case in cases if case.name == twice[0]]
        raise FolderError(
            f"several cases have the same name, and so would their results: {twice[0]!r} ({', '.join(places[:3])})"
            f"{f' and {len(twice) - 1} more' if twice[1:] else ''}; rename the files or give them folders of their own"
        )
    work_dir = Path(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    finished = _start(work_dir, json.loads(json.dumps(plain(dict(settings)), default=str)), restart)
    todo = [case for case in cases if case.name not in finished]
    skipped = len(cases) - len(todo)
    failed: dict[str, str] = {}
    with open(work_dir / "cases.jsonl", "a", encoding="utf-8") as stream:

        def keep(case: Case, row: Mapping) -> None:
            finished[case.name] = {"case": case.name, **plain(dict(row))}
            stream.write(json.dumps(finished[case.name]) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

        with _bar(len(cases), skipped, progress) as bar:
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                try:
                    rows = list(predict(batch))
                except Exception as error:  # noqa: BLE001 - a broken file must not end a run over thousands
                    rows = None if len(batch) > 1 else [error]
                if rows is None:
                    rows = [_alone(predict, case) for case in batch]
                if len(rows) != len(batch):
                    raise RuntimeError(f"predict gave {len(rows)} rows for {len(batch)} cases")
                for case, row in zip(batch, rows, strict=True):
                    if isinstance(row, Exception):
                        failed[case.name] = f"{type(row).__name__}: {row}"
                    else:
                        keep(case, row)
                bar.update(len(batch))
    write_cases(work_dir / "failed.jsonl", [{"case": name, "error": text} for name, text in failed.items()])
    return FolderReport([finished[name] for name in names if name in finished], failed, skipped)


def print_failures(report: FolderReport, most: int = 20) -> None:
    """Name the failed cases on standard error."""
    for name, text in list(report.failed.items())[:most]:
        print(f"failed: {name}: {text}", file=sys.stderr)
    if len(report.failed) > most:
        print(f"failed: {len(report.failed) - most} more, see failed.jsonl", file=sys.stderr)


def _alone(predict, case: Case):
    try:
        (row,) = predict([case])
        return row
    except Exception as error:  # noqa: BLE001
        return error


def _start(work_dir: Path, settings: dict, restart: bool) -> dict[str, dict]:
    record, results = work_dir / "run.json", work_dir / "cases.jsonl"
    if restart:
        results.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if before != settings:
            changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
            shown = "; ".join(f"{k}: {before.get(k)!r} -> {settings.get(k)!r}" for k in changed)
            raise FolderError(f"{work_dir} holds results of other settings ({shown}); choose another folder or restart")
    write_atomic(record, lambda path: path.write_text(json.dumps(settings, indent=1), encoding="utf-8"))
    finished: dict[str, dict] = {}
    if results.is_file():
        lines = results.read_bytes().split(b"\n")
        # A killed process may leave half a line; it is cut off so that new lines start on their own.
        for line in lines:
            try:
                row = json.loads(line)
                finished[row["case"]] = row
            except (ValueError, KeyError, TypeError):
                continue
        write_cases(results, list(finished.values()))
    return finished


def _bar(total: int, done: int, progress: bool | None):
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=total, initial=done, disable=not shown, unit="case")

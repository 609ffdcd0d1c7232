"""Work through many cases: batched, resumable, every failure named, results whole or not there.

A run folder holds

- `progress.jsonl`: how far it was, every few seconds, where a command runs it;
- `cases.jsonl`: one line per finished case, written as soon as the case is done, and on the disk within a second;
- `failed.jsonl`: one line per case that raised, with the kind and text of the error;
- `run.json`: the settings of the run, so that results of different settings never mix, and the content of the model.

One process at a time writes in a folder. What is finished is known by content: a case whose image was replaced is done
again, and a run whose model was replaced is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimed.files import (
    FolderLock,
    append_json_line,
    is_of_the_disk,
    plain,
    read_json,
    read_json_lines,
    write_json_lines,
    write_text,
)
from unimed.identity import content_digest, identity_of
from unimed.io.remote import redacted
from unimed.markup import plain_line
from unimed.names import same_on_disk, source_of
from unimed.progress import Progress, logged
from unimed.structures import Case

#: Seconds between two waits for the disk; cases take longer as a rule, so that each is waited for.
_SYNC_S = 1.0


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
    ends: Callable[[Exception], bool] = is_of_the_disk,
    log: bool = True,
) -> FolderReport:
    """Call `predict` on batches of the cases that are not finished.

    Args:
        cases: their names must differ.
        predict: batch -> one row per case (JSON-ready; numpy numbers are converted). It writes its own files first: a
            case counts as finished once its row is in `cases.jsonl`. If a batch raises, its cases are tried one by one,
            and those that raise alone are reported as failed and tried again in the next run.
        settings: what decides the results (model, flags); kept in `run.json`.
        restart: forget earlier results.
        ends: whether what `predict` raised ends the run, since every further case would fail the same way.
        log: write `progress.jsonl`.

    Raises:
        Exception: what `predict` raised and `ends` holds true of; what was finished is kept.
        FolderError: two cases of one name, or `work_dir` holds results of other settings (both are shown).
        FolderInUseError: another process writes in `work_dir`.
    """
    cases = list(cases)
    _refuse_shared_names(cases)
    work_dir = Path(work_dir)
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    with FolderLock(work_dir, "a run over cases"), logged(work_dir) if log else contextlib.nullcontext():
        return _run(cases, predict, work_dir, run_settings(settings), batch_size, restart, ends)


def run_settings(settings: Mapping[str, Any]) -> dict:
    """The settings as `run.json` holds them: plain values; of paths the name alone and, of the model and of files, the
    digest of what lies there (`NAME_content`)."""
    kept = json.loads(json.dumps(plain(dict(settings)), default=str))
    for name, value in list(kept.items()):
        if isinstance(value, str) and value and (os.path.isabs(value) or name == "model") and Path(value).exists():
            kept[name] = Path(os.path.abspath(value)).name
            if name == "model" or Path(value).is_file():
                kept[f"{name}_content"] = content_digest(value)
    return kept


def _refuse_shared_names(cases: Sequence[Case]) -> None:
    first: dict[str, int] = {}
    for number, case in enumerate(cases):
        other = first.setdefault(same_on_disk(case.name), number)
        if other != number:
            places = ", ".join(str(next(iter(one.inputs.values()), "")) for one in (cases[other], case))
            raise FolderError(
                f"several cases have the same name, and so would their results: {case.name!r} ({places}); "
                "rename the files or give them folders of their own"
            )


def _run(cases, predict, work_dir: Path, settings: dict, batch_size: int, restart: bool, ends) -> FolderReport:
    names = [case.name for case in cases]
    finished = _start(work_dir, settings, restart)
    contents = {case.name: case_content(case) for case in cases}
    todo = [case for case in cases if finished.get(case.name, {}).get("content") != contents[case.name]]
    skipped = len(cases) - len(todo)
    failed: dict[str, str] = {}
    synced = 0.0

    def keep(case: Case, row: Mapping) -> None:
        nonlocal synced
        if case_content(case) != contents[case.name]:
            failed[case.name] = "ChangedError: its files were changed while it was worked on; run again"
            return
        source = source_of(work_dir, case.name)
        kept = {"case": case.name, **plain(dict(row)), "content": contents[case.name]}
        finished[case.name] = kept | ({"source_id": source} if source else {})
        due = time.monotonic() - synced > _SYNC_S
        append_json_line(work_dir / "cases.jsonl", finished[case.name], sync=due)
        synced = time.monotonic() if due else synced

    try:
        with Progress("case", len(cases), skipped) as progress:
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                for case, row in zip(batch, _rows_of(predict, batch, ends), strict=True):
                    if isinstance(row, Exception):
                        failed[case.name] = redacted(f"{type(row).__name__}: {row}")
                    else:
                        keep(case, row)
                progress.step(len(batch))
    except KeyboardInterrupt as stop:
        kept = f"{len(finished)} of {len(cases)} cases are finished and kept in {work_dir}"
        raise KeyboardInterrupt(f"{kept}; the same command goes on") from stop
    for name in failed:
        finished.pop(name, None)  # an answer of an earlier content is none of this one
    order = dict.fromkeys([*(name for name in names if name in finished), *finished])
    write_json_lines(work_dir / "cases.jsonl", [finished[name] for name in order])
    write_json_lines(work_dir / "failed.jsonl", [{"case": name, "error": text} for name, text in failed.items()])
    return FolderReport([finished[name] for name in names if name in finished], failed, skipped)


def case_content(case: Case) -> str:
    """Digest of what a case is made of: its texts and the content of its files."""
    try:
        return identity_of(case.inputs)[:32]
    except OSError as error:
        return f"unreadable: {type(error).__name__}"


def print_failures(report: FolderReport, most: int = 20) -> None:
    """Name the failed cases on standard error."""
    for name, text in list(report.failed.items())[:most]:
        print(f"failed: {plain_line(name)}: {plain_line(text)}", file=sys.stderr)
    if len(report.failed) > most:
        print(f"failed: {len(report.failed) - most} more, see failed.jsonl", file=sys.stderr)


def print_windows(rows: Sequence[Mapping], most: int = 5) -> None:
    """What was done to the images of a run before a model saw them, with the number of images."""
    counts = Counter("; ".join(row["steps"]) for row in rows if row.get("steps"))
    for steps, count in counts.most_common(most):
        print(f"{count} images: {plain_line(steps)}")
    if len(counts) > most:
        print(f"{sum(counts.values()) - sum(n for _, n in counts.most_common(most))} more: see cases.jsonl")


def _rows_of(predict, batch: list[Case], ends) -> list:
    """A row, or what was raised, per case."""
    try:
        rows = list(predict(batch))
    except Exception as error:
        if ends(error):
            raise
        # A broken file must not end a run over thousands.
        rows = [error] if len(batch) == 1 else [_rows_of(predict, [case], ends)[0] for case in batch]
    if len(rows) != len(batch):
        raise RuntimeError(f"predict gave {len(rows)} rows for {len(batch)} cases")
    return rows


def _start(work_dir: Path, settings: dict, restart: bool) -> dict[str, dict]:
    """What earlier runs of these settings finished, by name."""
    record, results = work_dir / "run.json", work_dir / "cases.jsonl"
    if restart:
        results.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    if record.is_file():
        before = read_json(record, error=FolderError)
        if before != settings:
            raise FolderError(other_settings(work_dir, before, settings))
    write_text(record, json.dumps(settings, indent=1, ensure_ascii=False))
    finished = read_finished(results)
    write_json_lines(results, finished.values())
    return finished


def other_settings(folder: Path, before: Mapping, settings: Mapping) -> str:
    """What to tell a user whose folder holds results of other settings, or of another model at the same place."""
    changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
    if changed == ["model_content"]:
        shown = f"the model at {settings.get('model')} was replaced since"
    else:
        shown = "; ".join(
            f"{k}: {before.get(k)!r} -> {settings.get(k)!r}"
            for k in changed
            if k != "model_content" or len(changed) == 1
        )
    return f"{folder} holds results of other settings ({shown}); choose another folder or restart"


def read_finished(path: Path) -> dict[str, dict]:
    """{case: row} of a `cases.jsonl`; half a line of a killed process is left out, of several rows the last counts."""
    if not path.is_file():
        return {}
    return {
        str(row["case"]): row for _, row in read_json_lines(path, error=FolderError, torn_end=True) if "case" in row
    }

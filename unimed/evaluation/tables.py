"""Tables and per-case files: a markdown table with the command under it, and one JSON line per case."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from unimed.evaluation.cases import renamed
from unimed.files import read_json_lines, write_json_lines
from unimed.markup import for_markdown
from unimed.metrics.statistics import Interval, bootstrap_mean


def markdown_table(
    rows: Sequence[Mapping], *, columns: Sequence[str] | None = None, command: str = "", digits: int = 3
) -> str:
    """Rows as a markdown table; numbers are rounded, NaN and missing cells show as a dash.

    Args:
        columns: order of the columns; by default the keys in the order in which they first appear.
        command: what reproduces the table, printed under it as code (see `this_command`).

    Raises:
        ValueError: a named column occurs in no row.
    """
    known = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns or ():
        if known and column not in known:
            raise ValueError(f"column {column!r} is in no row; there are {known}")
    columns = list(columns or known)
    cells = [[_cell(row.get(column), digits) for column in columns] for row in rows]
    heads = [_cell(str(column), digits) for column in columns]
    widths = [max(len(c), 3, *(len(r[i]) for r in cells)) if cells else 3 for i, c in enumerate(heads)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(heads, widths, strict=True)) + " |"]
    lines.append("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    lines += ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    if command:
        lines += ["", f"`{command}`"]
    return "\n".join(lines) + "\n"


def means_by(
    rows: Sequence[Mapping],
    by: str | Sequence[str],
    metrics: Sequence[str],
    *,
    group: str = "group",
    resamples: int = 500,
    seed: int = 0,
) -> list[dict]:
    """One row per value of the keys in `by` (e.g. ("modality", "target")): cases, and means with intervals.

    Args:
        metrics: columns to average; None and NaN are left out, `cases` counts the rows.
        group: column of the patient; its items are resampled together where every row has one and there are
            several, else cases are resampled.

    Raises:
        ValueError: a key or metric is in no row.
    """
    keys = [by] if isinstance(by, str) else list(by)
    for name in [*keys, *metrics]:
        if rows and not any(name in row for row in rows):
            raise ValueError(f"{name!r} is in no row; there are {sorted({key for row in rows for key in row})}")
    parts: dict[tuple, list[Mapping]] = {}
    for row in rows:
        parts.setdefault(tuple(str(row.get(key, "")) for key in keys), []).append(row)
    table = []
    for values, part in sorted(parts.items()):
        line: dict = dict(zip(keys, values, strict=True)) | {"cases": len(part)}
        owners = [row.get(group) for row in part]
        clusters = owners if None not in owners and len(set(owners)) > 1 else None
        for metric in metrics:
            numbers = [float("nan") if row.get(metric) is None else float(row[metric]) for row in part]
            line[metric] = bootstrap_mean(numbers, groups=clusters, resamples=resamples, seed=seed)
        table.append(line)
    return table


def _cell(value, digits: int) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Interval):
        if math.isnan(value.value):
            return "-"
        if math.isnan(value.low):  # one case has no interval
            return f"{value.value:.{digits}f}"
        return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    if isinstance(value, float | np.floating):
        return "-" if math.isnan(value) else f"{value:.{digits}f}"
    return "-" if value is None else for_markdown(str(value))


def this_command() -> str:
    """The command line of the running process, quoted for a shell: what to print under a table."""
    return shlex.join(
        ["unimed", *sys.argv[1:]] if Path(sys.argv[0]).name in ("__main__.py", "unimed") else ["python", *sys.argv]
    )


def write_cases(path: str | os.PathLike, rows: Iterable[Mapping]) -> Path:
    """One JSON object per line and case, whole or not at all: an interrupted run leaves the former file.

    NaN and Inf become null, numpy values become plain ones, so that any JSON reader takes the file.
    """
    return write_json_lines(path, rows)


def read_cases(path: str | os.PathLike) -> list[dict]:
    """Rows of a per-case file as they were written; columns of older files also under their names of today
    (`cases.ALIASES`).

    Raises:
        ValueError: a line is no JSON object; file and line are named.
    """
    return [renamed(row) for _, row in read_json_lines(path)]

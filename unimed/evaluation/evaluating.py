"""`unimed.evaluate`: predictions and samples in, rows of one schema and one table of means out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimed.evaluation.rows import rows_of
from unimed.evaluation.tables import markdown_table, write_cases
from unimed.io.result import Prediction
from unimed.metrics.presence import presence_scores
from unimed.metrics.registered import Metric, metrics_of
from unimed.metrics.statistics import bootstrap, bootstrap_mean
from unimed.structures import Sample

#: Kind of row -> kinds of metrics whose values stand in it.
METRICS_OF_ROWS = {"mask": ("mask",), "box": ("boxes",), "answer": ("text",), "text": ("text",)}


class Rows(list):
    """Rows of the schema (`unimed.evaluation.cases`) with what is made of them."""

    def means(self, by: Sequence[str] = ("kind", "task"), *, resamples: int = 500, seed: int = 0) -> list[dict]:
        """One line per group and metric: cases, patients, the mean over cases with its interval, range and direction.

        Patients are resampled whole (95 % percentile bootstrap); a group of one patient has no interval. Rows of
        presence give rates and an AUROC instead of a mean.

        Raises:
            ValueError: a key that no row has.
        """
        by = [by] if isinstance(by, str) else list(by)
        if unknown := [key for key in by if self and not any(key in row for row in self)]:
            raise ValueError(f"{unknown[0]!r} is in no row; there are {sorted({key for row in self for key in row})}")
        groups: dict[tuple, list[dict]] = {}
        for row in self:
            groups.setdefault((row["kind"], *(str(row.get(key, "")) for key in by)), []).append(row)
        table = []
        for (kind, *values), rows in sorted(groups.items()):
            line = dict(zip(by, values, strict=True))
            owners = [row["group"] for row in rows]
            counts = {"cases": len(rows), "patients": len(set(owners))}
            options: dict[str, Any] = {"groups": owners, "resamples": resamples, "seed": seed}
            if kind == "presence":
                table += [line | {"metric": name} | counts | value for name, value in _presence(rows, options)]
                continue
            for name, one in _metrics(kind, rows):
                numbers = [np.nan if row.get(name) is None else float(row[name]) for row in rows]
                mean = bootstrap_mean(numbers, **options)
                table.append(line | {"metric": name} | counts | {"mean": mean, "better": one.better})
        return table

    def markdown(self, by: Sequence[str] = ("kind", "task"), *, command: str = "", **options) -> str:
        """`means` as a markdown table."""
        return markdown_table(self.means(by, **options), command=command)

    def scores(self, **options) -> dict:
        """As tasks give scores: {"summary": {"METRIC/KIND": mean}, "tables": {"means": ...}, "cases": these rows}."""
        means = self.means(("kind",), **options)
        summary = {f"{line['metric']}/{line['kind']}": line["mean"].value for line in means}
        return {"summary": summary, "tables": {"means": means}, "cases": self}

    def save(self, folder: str | Path, *, command: str = "") -> list[Path]:
        """Write `cases.jsonl` and `scores.md`, each whole or not at all."""
        from unimed.files import write_text

        folder = Path(folder)
        text = self.markdown(command=command) + "\nResearch use only.\n"
        return [write_cases(folder / "cases.jsonl", self), write_text(folder / "scores.md", text)]


def _metrics(kind: str, rows: Sequence[dict]) -> list[tuple[str, Metric]]:
    known = {name: one for group in METRICS_OF_ROWS.get(kind, ()) for name, one in metrics_of(group).items()}
    return [(name, one) for name, one in known.items() if any(name in row for row in rows)]


def _presence(rows: Sequence[dict], options: dict):
    probability = np.array([row["presence"] for row in rows], dtype=float)
    present = np.array([row["present"] for row in rows], dtype=bool)
    shown = np.array([row["predicted_voxels"] for row in rows])

    def value(name):
        return lambda index: presence_scores(probability[index], present[index], shown[index])[name]

    # Where nothing is absent, or everything is, an accuracy says nothing: always answering so would be right.
    judged = ("presence_accuracy", "presence_auroc") if present.any() and not present.all() else ()
    for name in (*judged, "false_mask_rate", "missed_mask_rate"):
        better = "lower" if name.endswith("_mask_rate") else "higher"
        yield name, {"mean": bootstrap(value(name), len(rows), **options), "better": better}


def evaluate(
    predictions: Prediction | Iterable[Prediction], samples: Sample | Iterable[Sample], *, folder: str | Path = ""
) -> Rows:
    """Compare predictions with samples, whatever they hold: masks, boxes, presence, answers, descriptions.

    Regions are matched by name and place (`unimed.evaluation.matching`): a missing, an additional and an exchanged one
    cost, the order of an answer does not.

    Args:
        predictions: one per sample, in the order of the samples.
        folder: of the project; its salt hashes the patients (`cases.project`), so that rows of several calls can be
            told to be of one patient. By default only rows of this process belong together.

    Returns:
        one row per case and target; `rows.means()` and `rows.markdown()` give one table with intervals that resample
        patients, `rows.save(folder)` writes both.

    Raises:
        ValueError: another number of predictions than samples, or masks of another shape than the truth (the sample is
            named), or what is no `Prediction` or no `Sample`.
    """
    from contextlib import nullcontext

    from unimed.evaluation.cases import project

    # What is read when it is asked for stays so: masks of many volumes need no memory together.
    predictions = [predictions] if isinstance(predictions, Prediction) else _sequence(predictions)
    samples = [samples] if isinstance(samples, Sample) else _sequence(samples)
    if len(predictions) != len(samples):
        raise ValueError(f"{len(predictions)} predictions for {len(samples)} samples; there must be one for each")
    rows = Rows()
    with project(folder) if folder else nullcontext():
        for sample, prediction in zip(samples, predictions, strict=True):
            if not isinstance(sample, Sample) or not isinstance(prediction, Prediction):
                found = f"{type(prediction).__name__} and {type(sample).__name__}"
                raise ValueError(f"evaluate compares a Prediction with a Sample, got {found}")
            try:
                rows += rows_of(sample, prediction)
            except ValueError as error:
                raise ValueError(f"{sample.sample_id}: {error}") from error
    return rows


def scores_of(found) -> dict:
    """What any scorer or `Task.score` gives as {"summary": {name: value}, "tables": {title: rows}, "cases": rows}.

    Args:
        found: `Rows`, a mapping with these keys (tables and cases may be missing), or a plain {name: number}.
    """
    if isinstance(found, Rows):
        return found.scores()
    if "summary" not in found:
        return {"summary": dict(found), "tables": {}, "cases": []}
    return {**found, "tables": dict(found.get("tables") or {}), "cases": list(found.get("cases") or ())}


def _sequence(items) -> Sequence:
    return items if isinstance(items, Sequence) else list(items)

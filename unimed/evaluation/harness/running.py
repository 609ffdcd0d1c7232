"""Asking a contestant every case of a benchmark, scoring what it said, and writing a run folder.

A run folder holds `manifest.json` (what it was made of), `predictions.jsonl` (frozen), `cases.jsonl` (rows of the
schema), `scores.json`, `scores.md` and `run.html`; `failed.jsonl` where cases raised. While it is asked, finished cases
stand in `predictions.part.jsonl`, and the same command goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unimed.evaluation.benchmarks.declaring import Benchmark
from unimed.evaluation.cases import project
from unimed.evaluation.comparing import direction, worst_cases
from unimed.evaluation.contestants.base import Contestant, asked
from unimed.evaluation.evaluating import Rows
from unimed.evaluation.gallery import failure_gallery
from unimed.evaluation.harness.frozen import Frozen, frozen, read_lines
from unimed.evaluation.harness.manifest import FORMAT, NAME, data_digest, numbers_of, sample_digest
from unimed.evaluation.pages import run_page, write_page
from unimed.evaluation.tables import markdown_table, write_cases
from unimed.files import append_json_line, read_json_lines, write_json_lines, write_report, write_text
from unimed.identity import identity_of
from unimed.io.result import Prediction
from unimed.markup import plain_line
from unimed.metrics.statistics import Interval, bootstrap_mean
from unimed.progress import Progress
from unimed.structures import Sample

#: What of the manifest stands on the page; the plan names folders of its user.
ON_PAGE = ("benchmark", "contestant", "code", "seed", "created", "headline")
PREDICTIONS, PART, FAILED = "predictions.jsonl", "predictions.part.jsonl", "failed.jsonl"


class RunError(ValueError):
    """A run that cannot start or be scored; the message names the folder or case and what to do."""


class Samples(Sequence[Sample]):
    """The first samples of a data set, read when they are asked for."""

    def __init__(self, dataset, limit: int | None = None):
        self.dataset, self.count = dataset, min(len(dataset), limit if limit is not None else len(dataset))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        if not -self.count <= index < self.count:
            raise IndexError(index)
        return self.dataset[index % self.count]


@dataclass
class Asked:
    """What came of asking: lines of predictions and digests of the samples by case, in order; case -> error."""

    lines: dict[str, dict]
    digests: dict[str, str]
    failed: dict[str, str] = field(default_factory=dict)


def seed_all(seed: int) -> None:
    """Seed `random`, numpy and torch."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def ask_all(
    samples: Samples, contestant: Contestant, folder: Path, *, settings: Mapping, batch_size: int, restart: bool = False
) -> Asked:
    """Ask every case; those an unfinished run of the same settings holds are not asked again.

    A case that raises counts as an empty answer and is named in `failed`.

    Raises:
        RunError: two samples of one id, the folder holds an unfinished run of other settings, or every case failed.
    """
    key, part = identity_of(settings), folder / PART
    known = {} if restart else _unfinished(part, key)
    if not known:
        part.unlink(missing_ok=True)
        append_json_line(part, {"settings": key})
    found = Asked({}, {})
    with Progress("case", len(samples)) as progress:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            for sample in batch:
                if sample.sample_id in found.digests:
                    raise RunError(f"two samples are called {sample.sample_id!r}; cases need ids of their own")
                found.digests[sample.sample_id] = sample_digest(sample)
            todo = []
            for sample in batch:
                line = known.get(sample.sample_id)
                if line is not None and line["content"] == found.digests[sample.sample_id]:
                    found.lines[sample.sample_id] = line["prediction"]
                else:
                    todo.append(sample)
            for sample, answer in zip(todo, _answers(contestant, todo), strict=True):
                case = sample.sample_id
                if isinstance(answer, Prediction):
                    found.lines[case] = frozen(case, answer)
                    content = found.digests[case]
                    append_json_line(part, {"case": case, "content": content, "prediction": found.lines[case]})
                else:
                    found.failed[case] = f"{type(answer).__name__}: {plain_line(str(answer))}"
                    found.lines[case] = frozen(case, Prediction(""))
            progress.step(len(batch))
    found.lines = {case: found.lines[case] for case in found.digests}
    if len(found.failed) == len(found.lines):
        case, error = next(iter(found.failed.items()))
        raise RunError(f"every case failed, and nothing was scored; {case}: {error}")
    return found


def _answers(contestant: Contestant, samples: Sequence[Sample]) -> list[Prediction | Exception]:
    """Predictions, or what was raised; a batch that raises is asked one by one."""
    shown = [asked(sample) for sample in samples]
    if not shown:
        return []
    try:
        return list(contestant.answer(shown))
    except Exception as error:
        if len(shown) == 1:
            return [error]
    answers: list[Prediction | Exception] = []
    for one in shown:
        try:
            answers.append(contestant.answer_case(one))
        except Exception as error:
            answers.append(error)
    return answers


def _unfinished(part: Path, key: str) -> dict[str, dict]:
    if not part.is_file():
        return {}
    lines = [line for _, line in read_json_lines(part, error=RunError, torn_end=True)]
    if not lines or lines[0].get("settings") != key:
        raise RunError(f"{part.parent}: holds an unfinished run of other settings; choose another folder or --restart")
    return {line["case"]: line for line in lines[1:]}


def frozen_predictions(samples: Samples, path: Path) -> Asked:
    """Predictions of a run, for scoring them again; cases that failed in it stay failed.

    Raises:
        RunError: a sample without a prediction.
    """
    lines, found = read_lines(path), Asked({}, {})
    for index in range(len(samples)):
        sample = samples[index]
        if sample.sample_id not in lines:
            raise RunError(f"{path}: holds no case {sample.sample_id!r}; are these the data of the run?")
        found.lines[sample.sample_id] = lines[sample.sample_id]
        found.digests[sample.sample_id] = sample_digest(sample)
    failed = path.with_name(FAILED)
    if failed.is_file():
        lines = [line for _, line in read_json_lines(failed, error=RunError)]
        found.failed = {line["case"]: line["error"] for line in lines if line["case"] in found.lines}
    return found


@dataclass
class Scores:
    """Rows, their means with intervals, further numbers and tables of the scorer, and the headline."""

    rows: Rows
    means: list[dict]
    summary: dict
    tables: dict
    headline: dict


def score(one: Benchmark, samples: Samples, predictions: Sequence[Prediction], salted: Path, resamples: int) -> Scores:
    """Score predictions, one per sample.

    Args:
        salted: folder of the project whose salt hashes the patients.
    """
    with project(salted):
        rows, summary, tables = one.rows(samples, predictions)
    rows = Rows(rows)
    means = rows.means(("kind", "task"), resamples=resamples)
    return Scores(rows, means, summary, tables, headline_of(one, rows, resamples))


def headline_of(one: Benchmark, rows: Sequence[Mapping], resamples: int) -> dict:
    """{"metric", "kind", "mean", "better"}: the headline of the benchmark over its rows; NaN without any."""
    metric, kind = one.headline or one.metrics[0], one.row_kind
    mine = Rows(row for row in rows if row["kind"] == kind)
    if kind == "presence":
        mean = next(
            (line["mean"] for line in mine.means("kind", resamples=resamples) if line["metric"] == metric), None
        )
    else:
        known = [row for row in mine if row.get(metric) is not None]
        values, groups = [float(row[metric]) for row in known], [row["group"] for row in known]
        mean = bootstrap_mean(values, groups=groups, resamples=resamples) if known else None
    mean = mean or Interval(float("nan"), float("nan"), float("nan"))
    return {"metric": metric, "kind": kind, "mean": mean, "better": direction(metric)}


def write_run(
    folder: Path, one: Benchmark, samples: Samples, answered: Asked, scores: Scores, manifest: Mapping,
    further: Mapping[str, Sequence[Mapping]], *, worst: int = 12, command: str = "",
) -> tuple[dict, str]:  # fmt: skip
    """Write all files of a run; returns its manifest and the text of the tables."""
    write_json_lines(folder / PREDICTIONS, answered.lines.values())
    write_cases(folder / "cases.jsonl", scores.rows)
    head = scores.headline
    manifest = {
        "format": FORMAT, **manifest,
        "data": {**manifest["data"], "content": data_digest(answered.digests), "cases": len(answered.digests)},
        "failed": len(answered.failed), "headline": {**head, "mean": _plain(head["mean"])},
        "numbers": numbers_of(scores.means, scores.summary),
    }  # fmt: skip
    failed = [{"case": case, "error": error} for case, error in answered.failed.items()]
    if failed:
        write_json_lines(folder / FAILED, failed)
        further = {"Failed cases, scored as empty answers": failed, **further}
    else:
        (folder / FAILED).unlink(missing_ok=True)  # of the run that was here before
    tables = {"Means": scores.means, **scores.tables, **further}
    text = "\n".join(f"## {name}\n\n{markdown_table(rows) if rows else 'none'}" for name, rows in tables.items())
    text += f"\n`{command}`\n\nResearch use only.\n" if command else "\nResearch use only.\n"
    write_text(folder / "scores.md", text)
    write_report(folder / "scores.json", {"numbers": manifest["numbers"], "headline": manifest["headline"]})
    title = f"{manifest['contestant']['name']} on {one.name}"
    shown = {key: manifest[key] for key in ON_PAGE} | {"data": manifest["data"]["content"]}
    drawn = gallery(samples, answered, scores, worst) if worst else []
    page = run_page(
        title,
        scores.means,
        manifest=shown,
        worst=drawn,
        further={**scores.tables, **further},
        command=command,
    )
    write_page(folder / "run.html", page)
    write_report(folder / NAME, manifest)  # the last: a folder with a manifest is whole
    (folder / PART).unlink(missing_ok=True)
    return manifest, text


def gallery(samples: Samples, answered: Asked, scores: Scores, most: int) -> list[tuple[bytes, str]]:
    """(PNG, caption) of the worst cases by the headline; only these are read again."""
    metric = scores.headline["metric"]
    rows = [row for row in scores.rows if row["kind"] == scores.headline["kind"]]
    names = {part for row in worst_cases(rows, metric, 4 * most)
             for part in (str(row["case"]), str(row["case"]).rsplit("/", 2)[0])}  # fmt: skip
    places = [place for place, case in enumerate(answered.lines) if case in names]
    chosen = [samples[place] for place in places]
    shown = [(s, answered.lines[s.sample_id]) for s in chosen if s.images]
    found = Frozen([line for _, line in shown])
    return list(failure_gallery([sample for sample, _ in shown], list(found), rows, metric, most))


def _plain(mean: Interval) -> dict:
    return {"value": mean.value, "low": mean.low, "high": mean.high}

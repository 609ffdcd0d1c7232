"""Statements of the reports of a run, judged by a model, or by what was recorded of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimed.evaluation.cases import project
from unimed.evaluation.judges import EndpointJudge
from unimed.evaluation.scorers.green import green_rows, green_table
from unimed.evaluation.scorers.radfact import radfact_rows, radfact_table
from unimed.evaluation.tables import write_cases
from unimed.io.result import Prediction
from unimed.structures import Task

RECORD, ROWS, ERROR_ROWS, KEY = "judgements.jsonl", "statements.jsonl", "errors.jsonl", "JUDGE_API_KEY"


def judge_of(plan, out: Path) -> EndpointJudge:
    """The judge of a plan, not asked yet.

    Raises:
        ValueError: a model or its address is missing.
    """
    return EndpointJudge(plan.judge, plan.judge_url, KEY, record=out / RECORD)


def judged(plan, out: Path, samples: Sequence, predictions: Sequence[Prediction], salted: Path) -> list[dict]:
    """Lines of the table over all samples whose answer is a report or a caption: RadFact's numbers and GREEN.

    Rows go to `statements.jsonl` and `errors.jsonl`.

    Judgements are kept in `judgements.jsonl` of the run, and none is asked for twice: a run is scored again without the
    judge.
    """
    judge = judge_of(plan, out)
    places = [n for n in range(len(samples)) if samples[n].task in (Task.REPORT, Task.CAPTION) and samples[n].images]
    with project(salted):
        asked, answered = [samples[n] for n in places], [predictions[n] for n in places]
        rows, errors = radfact_rows(asked, answered, judge), green_rows(asked, answered, judge)
    write_cases(out / ROWS, rows)
    write_cases(out / ERROR_ROWS, errors)
    return [
        *radfact_table(rows, judge, resamples=plan.resamples),
        *green_table(errors, judge, resamples=plan.resamples),
    ]

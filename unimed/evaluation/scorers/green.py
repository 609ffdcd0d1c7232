"""Errors of reports as GREEN counts them (arXiv 2405.03595): matched findings over these and significant errors.

Who counts is a judge of the user's choice, by our own versioned prompt; numbers of another judge, GREEN's own model
included, must not be compared with these without their agreement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.evaluation.cases import sample_row
from unimed.evaluation.judges import ERRORS, ErrorCounts, Judge
from unimed.evaluation.rows import answer_of, without_markers
from unimed.io.result import Prediction
from unimed.metrics.statistics import bootstrap_mean
from unimed.structures import Sample


def green(counts: ErrorCounts) -> float:
    """matched / (matched + significant errors), 0 to 1; 0 where nothing matches, NaN where the answer was no count."""
    if not counts.readable:
        return float("nan")
    return counts.matched / (counts.matched + sum(counts.significant.values())) if counts.matched else 0.0


def green_rows(samples: Sequence[Sample], predictions: Sequence[Prediction], judge: Judge) -> list[dict]:
    """A row per report: `green`, the findings that match, and errors of both kinds."""
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        counts = judge.count_errors(without_markers(prediction.text), without_markers(answer_of(sample)))
        rows.append(
            sample_row(
                sample, "text", green=green(counts), findings_matched=counts.matched,
                significant_errors=sum(counts.significant.values()),
                insignificant_errors=sum(counts.insignificant.values()),
            )
        )  # fmt: skip
    return rows


def green_table(rows: Sequence[dict], judge: Judge, *, resamples: int = 500) -> list[dict]:
    """One line: the mean over the reports that were counted, with an interval over patients, and who counted."""
    known = [row for row in rows if not np.isnan(row["green"])]
    mean = bootstrap_mean([r["green"] for r in known], groups=[r["group"] for r in known], resamples=resamples) \
        if known else None  # fmt: skip
    return [{"metric": "green", "reports": len(known), "mean": mean, "judge": judge.name, "prompt": ERRORS}]

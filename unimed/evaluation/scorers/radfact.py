"""Grounded reports statement by statement, as RadFact counts (MAIRA-2, arXiv 2406.04449): is it true, and is it there?

A judge says whether a statement follows from the other report and from which of its statements; where it lies is
compared here, by pixels. Precision is over the statements of the prediction, recall over those of the truth:

- logical: the fraction of statements that follow from the other report;
- grounding: of those that follow and have a place, the fraction whose place fits;
- spatial: of all statements with a place, the fraction that follow and whose place fits.

A place fits where at least half of its pixels lie in the places of the statements it follows from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from unimed.evaluation.cases import sample_row
from unimed.evaluation.contestants.base import grid_of
from unimed.evaluation.judges import Judge
from unimed.evaluation.rows import answer_of, without_markers
from unimed.io.result import Prediction
from unimed.metrics.statistics import bootstrap_mean
from unimed.structures import Region, Sample

#: Fraction of the pixels of a place that must lie in the places of the evidence.
FITS = 0.5
NAMES = tuple(
    f"radfact_{kind}_{side}" for kind in ("logical", "grounding", "spatial") for side in ("precision", "recall")
)


def statements(text: str, regions: Sequence[Region], grid: Sequence[int]) -> list[tuple[str, np.ndarray | None]]:
    """(statement, where it lies as a bool mask or None) of a report; a region belongs to the statement with its phrase.

    Args:
        grid: shape of the image, HxW or DxHxW.
    """
    found = [one.strip(" .") for one in re.split(r"(?<=[.!?])\s+|\n+", without_markers(text)) if one.strip(" .")]
    places: dict[int, np.ndarray] = {}
    for region in regions:
        mask = _pixels(region, grid)
        if mask is None:
            continue
        name = region.phrase.lower().strip(" .")
        number = next((n for n, one in enumerate(found) if name and name in one.lower()), None)
        if number is None:  # pointed at without a sentence: its phrase is the statement
            found.append(region.phrase)
            number = len(found) - 1
        places[number] = mask if number not in places else places[number] | mask
    return [(one, places.get(number)) for number, one in enumerate(found)]


def _pixels(region: Region, grid: Sequence[int]) -> np.ndarray | None:
    if region.mask is not None:
        return region.mask if region.mask.any() and region.mask.shape == tuple(grid) else None
    if region.box_xyxy_px is None or len(grid) != 2:
        return None
    mask = np.zeros(tuple(grid), bool)
    x1, y1, x2, y2 = region.box_xyxy_px
    mask[max(0, round(y1)) : max(0, round(y2)), max(0, round(x1)) : max(0, round(x2))] = True
    return mask if mask.any() else None


def one_way(predicted: Sequence[tuple], other: Sequence[tuple], judge: Judge) -> dict[str, float]:
    """logical, grounding and spatial of the statements in `predicted`, judged by those of `other`; NaN without any."""
    report = [statement for statement, _ in other]
    true, there, placed, both = [], [], 0, 0
    for statement, place in predicted:
        found = judge.judge(statement, report)
        true.append(found.entailed)
        placed += place is not None
        if not found.entailed or place is None:
            continue
        evidence = [other[n][1] for n in found.evidence if n < len(other) and other[n][1] is not None]
        inside = np.logical_or.reduce(evidence) if evidence else np.zeros_like(place)
        there.append(bool((place & inside).sum() >= FITS * place.sum()))
        both += there[-1]
    return {
        "logical": float(np.mean(true)) if true else float("nan"),
        "grounding": float(np.mean(there)) if there else float("nan"),
        "spatial": both / placed if placed else float("nan"),
    }


def radfact_rows(samples: Sequence[Sample], predictions: Sequence[Prediction], judge: Judge) -> list[dict]:
    """A row per report with the six numbers and the counts of statements."""
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        grid = grid_of(sample)
        true = statements(answer_of(sample), sample.regions, grid)
        predicted = statements(prediction.text, prediction.regions, grid)
        values = {}
        for side, found in (
            ("precision", one_way(predicted, true, judge)),
            ("recall", one_way(true, predicted, judge)),
        ):
            values |= {f"radfact_{kind}_{side}": value for kind, value in found.items()}
        rows.append(
            sample_row(sample, "text", **values, statements_predicted=len(predicted), statements_true=len(true))
        )
    return rows


def radfact_table(rows: Sequence[dict], judge: Judge, *, resamples: int = 500) -> list[dict]:
    """A line per number: its mean over reports with an interval over patients, and who judged by which prompt."""
    lines = []
    for name in NAMES:
        known = [row for row in rows if not np.isnan(row[name])]
        mean = bootstrap_mean([r[name] for r in known], groups=[r["group"] for r in known], resamples=resamples) \
            if known else None  # fmt: skip
        lines.append({"metric": name, "reports": len(known), "mean": mean, "judge": judge.name, "prompt": judge.prompt})
    return lines

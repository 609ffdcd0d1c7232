"""Reports of chest radiographs: words, and the findings that they state."""

from __future__ import annotations

from collections.abc import Sequence

from unimed.evaluation.evaluating import evaluate
from unimed.evaluation.rows import answer_of, without_markers
from unimed.io.result import Prediction
from unimed.metrics.report_labels import label_scores
from unimed.metrics.text import captions
from unimed.structures import Sample


def score_chest_reports(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict:
    """Rows per report, corpus metrics of their words, and F1 of the findings they state (by rules, not CheXbert)."""
    truth = [answer_of(samples[index]) for index in range(len(samples))]
    predicted = [without_markers(prediction.text) for prediction in predictions]
    return {
        "summary": {**captions(predicted, truth), **label_scores(predicted, truth)},
        "cases": evaluate(predictions, samples),
    }

"""Boxes: overlap, accuracy at thresholds, and phrases with zero, one or many boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimed.metrics.boxes import (
    accuracy_at,
    area,
    as_boxes,
    iou_matrix,
    match,
    paired_giou,
    paired_iou,
    score_phrase,
    summarize_phrases,
)

coordinate = st.floats(0, 100, allow_nan=False)
box = st.tuples(coordinate, coordinate, st.floats(1, 50), st.floats(1, 50)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(box, box)
def test_overlap_is_symmetric_bounded_and_below_giou_never(first, second):
    overlap, generalised = paired_iou(first, second)[0], paired_giou(first, second)[0]
    assert 0 <= overlap <= 1 + 1e-9 and -1 <= generalised <= overlap + 1e-9
    assert overlap == pytest.approx(iou_matrix([second], [first])[0, 0])
    assert paired_iou(first, first)[0] == pytest.approx(1) and paired_giou(first, first)[0] == pytest.approx(1)


@given(box, box, st.floats(-50, 50), st.floats(0.5, 4))
def test_overlap_does_not_change_with_place_or_scale(first, second, shift, scale):
    moved = [(np.array(b) + shift) * scale for b in (first, second)]
    assert paired_iou(*moved)[0] == pytest.approx(paired_iou(first, second)[0], abs=1e-9)


def test_known_values_and_broken_boxes():
    assert paired_iou([0, 0, 10, 10], [5, 5, 15, 15])[0] == pytest.approx(25 / 175)
    assert paired_giou([0, 0, 1, 1], [3, 0, 4, 1])[0] == pytest.approx(-0.5)
    assert area([[10, 10, 0, 0]])[0] == 0
    assert paired_iou([10, 10, 0, 0], [0, 0, 10, 10])[0] == 0, "an inverted box overlaps nothing"
    assert as_boxes([]).shape == (0, 4)
    with pytest.raises(ValueError, match=r"first\[1\].*NaN"):
        iou_matrix([[0, 0, 1, 1], [0, np.nan, 1, 1]], [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"\[\d+, 4\] cannot be paired with \[\d+, 4\].*iou_matrix"):
        paired_iou([[0, 0, 1, 1]], np.zeros((2, 4)))


def test_accuracy_counts_the_threshold_itself():
    assert accuracy_at([0.5, 0.3, 0.1, 0.0]) == {"miou": 0.225, "acc_at_10": 0.75, "acc_at_30": 0.5, "acc_at_50": 0.25}
    assert np.isnan(accuracy_at([])["miou"])


def test_zero_one_many():
    one, two = [0, 0, 10, 10], [20, 0, 30, 10]
    assert match([two, one], [one, two]) == [(0, 1, 1.0), (1, 0, 1.0)]
    rows = [
        score_phrase([], []),
        score_phrase([one], []),
        score_phrase([one], [one]),
        score_phrase([one, two], [one]),
        score_phrase([two], [one, two]),
    ]
    assert [row["protocol"] for row in rows] == ["zero", "zero", "one", "one", "many"]
    assert [row["miou"] for row in rows] == [1, 0, 1, 0.5, 0.5]
    summary = summarize_phrases(rows)
    assert summary["false_box_rate"] == 0.5 and summary["miou_mean_over_phrases_one"] == 0.75
    assert summary["box_precision_at_50"] == 3 / 5 and summary["box_recall_at_50"] == 3 / 4
    assert summary["box_f1_at_50"] == pytest.approx(6 / 9)

"""ReXGroundingCT's protocol on cases counted by hand."""

import math

import numpy as np
import pytest

from unimed.metrics.findings import finding_hit, finding_scores, pool_findings


def line(*spans, length=40):
    mask = np.zeros((1, 1, length), dtype=bool)
    for start, stop in spans:
        mask[..., start:stop] = True
    return mask


def test_one_finding_by_hand():
    # True: 4 + 4 voxels; predicted: 4, of which 2 lie on the first, and a stray one. Dice 2*2/(8+5) = 4/13.
    row = finding_scores(line((2, 6), (30, 31)), line((0, 4), (20, 24)))
    assert row["dice"] == pytest.approx(4 / 13) and row["hit"] == 1
    # The pair has Dice 2*2/8 = 0.5: found; the stray instance is false, the second true one missed.
    assert (row["tp"], row["fp"], row["fn"]) == (1, 1, 1)


def test_thresholds_are_reached_not_passed():
    # 1 of 10 and 10 voxels: Dice exactly 0.1, a hit; the instance (0.1 < 0.2) is not found.
    row = finding_scores(line((9, 19)), line((0, 10)))
    assert row["dice"] == pytest.approx(0.1) and row["hit"] == 1 and (row["tp"], row["fp"], row["fn"]) == (0, 1, 1)
    # 2 of 10 and 10: Dice exactly 0.2, found.
    assert finding_scores(line((8, 18)), line((0, 10)))["tp"] == 1
    assert finding_hit(line((19, 30)), line((0, 20))) == 0  # 2 / 31


def test_pooled_counts_are_added_before_they_are_divided():
    rows = [
        finding_scores(line((0, 10)), line((0, 10))),  # dice 1, 1 tp
        finding_scores(line((0, 2), (4, 6), (8, 10)), line((20, 22))),  # dice 0, 3 fp, 1 fn
        finding_scores(line(), line((0, 5))),  # nothing predicted: dice 0, 1 fn
    ]
    pooled = pool_findings(rows)
    assert pooled["findings"] == 3 and pooled["global_dice"] == pytest.approx(1 / 3)
    assert pooled["hit_rate"] == pytest.approx(1 / 3)
    assert pooled["instance_precision"] == pytest.approx(1 / 4) and pooled["instance_recall"] == pytest.approx(1 / 3)
    assert pooled["instance_f1"] == pytest.approx(2 / 7)  # harmonic mean of 1/4 and 1/3


def test_labels_keep_touching_instances_apart():
    truth = np.array([[[1, 1, 2, 2]]])
    assert finding_scores(truth, truth)["tp"] == 2 and finding_scores(truth > 0, truth > 0)["tp"] == 1
    with pytest.raises(ValueError, match="one shape"):
        finding_scores(truth, truth[..., :2])
    with pytest.raises(ValueError, match="threshold first"):
        finding_scores(truth * 0.5, truth)


def test_nothing_is_nan_not_zero():
    assert all(math.isnan(value) for name, value in pool_findings([]).items() if name != "findings")
    nothing = pool_findings([finding_scores(line(), line((0, 2)))])
    assert math.isnan(nothing["instance_precision"]) and nothing["instance_recall"] == nothing["instance_f1"] == 0

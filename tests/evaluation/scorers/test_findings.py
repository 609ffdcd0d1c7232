"""The protocol of ReXGroundingCT from samples and predictions: Dice, hits and instances of findings."""

import numpy as np
import pytest

from unimed.evaluation.benchmarks import benchmark
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.structures import Region, Sample


def case(number, phrase="nodule in the left lower lobe", parts=2):
    mask = np.zeros((6, 20, 20), bool)
    for part in range(parts):
        mask[2:4, 2 + 8 * part : 7 + 8 * part, 3:8] = True
    return Sample(
        (np.zeros(mask.shape, np.uint8),), Geometry.pixels(), f"s{number}", conversation=(("user", f"Find {phrase}."),),
        regions=(Region(phrase, mask=mask),), labels={"task": "volume"}, patient_id=f"p{number}",
    )  # fmt: skip


def test_perfect_missed_and_partly_found():
    samples = [case(n) for n in range(3)]
    half = samples[1].regions[0].mask.copy()
    half[:, 8:] = False
    predictions = [
        Prediction("", samples[0].regions),
        Prediction("", (Region("it", mask=half),)),
        Prediction("nothing"),
    ]
    scores = benchmark("masks/rexgroundingct").score(samples, predictions, resamples=50)
    found = scores["summary"]
    assert found["hit_rate"] == pytest.approx(2 / 3) and found["global_dice"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["instance_recall"] == 0.5 and found["instance_precision"] == 1
    (line,) = scores["tables"]["findings"]
    assert line["patients"] == 3 and line["hit_rate"].low <= 2 / 3 <= line["hit_rate"].high
    assert [row["answered"] for row in scores["cases"]] == [True, True, False] and "p1" not in str(scores["cases"])


def test_what_cannot_be_scored_is_named():
    wrong = Prediction("", (Region("it", mask=np.ones((2, 2, 2), bool)),))
    with pytest.raises(ValueError, match="s0"):
        benchmark("masks/rexgroundingct").score([case(0)], [wrong])
    with pytest.raises(ValueError, match="no sample has a finding"):
        benchmark("masks/rexgroundingct").score([], [])

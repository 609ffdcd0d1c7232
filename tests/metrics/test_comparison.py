"""Permutation test, Holm, effect sizes and ranks against formulas, scipy and simulation."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from unimed.metrics.comparison import effect_sizes, holm, rank_distribution, sign_flip_test


def test_the_exact_test_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.random(9), rng.random(9)
        theirs = permutation_test(
            (first, second), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", n_resamples=10_000
        )
        assert sign_flip_test(first - second) == pytest.approx(theirs.pvalue)


def test_drawn_signs_agree_with_all_of_them():
    values = np.random.default_rng(1).normal(0.3, 1, 14)
    exact = sign_flip_test(values, resamples=2**14)
    assert sign_flip_test(values, resamples=9000) == pytest.approx(exact, abs=0.02)


def test_patients_are_turned_whole():
    # Twenty cases of two patients: only four turns exist, so p cannot be below 1/2.
    values, groups = np.ones(20), ["a"] * 10 + ["b"] * 10
    assert sign_flip_test(values, groups) == 0.5
    assert sign_flip_test(values) < 1e-3
    assert np.isnan(sign_flip_test([]))
    with pytest.raises(ValueError, match="groups"):
        sign_flip_test(values, ["a"])


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(15), 4)
    hits = sum(
        sign_flip_test(rng.normal(0, 1, 15)[groups] + rng.normal(0, 0.1, 60), groups, resamples=500) <= 0.05
        for _ in range(300)
    )
    assert hits / 300 < 0.09  # 0.05 and three standard errors


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.5, float("nan"), 0.001])
    assert corrected[0] == 0.5 and np.isnan(corrected[1]) and corrected[2] == pytest.approx(0.002)


def test_effect_sizes():
    found = effect_sizes([0.1, 0.3, -0.1, 0.0], ["a", "a", "b", "c"])
    means = np.array([0.2, -0.1, 0.0])
    assert found["cohen_dz"] == pytest.approx(means.mean() / means.std(ddof=1))
    assert found["superiority"] == pytest.approx(0.5)
    assert effect_sizes([0.0, 0.0])["cohen_dz"] == 0.0 and np.isnan(effect_sizes([])["superiority"])
    assert effect_sizes([0.5, 0.5])["cohen_dz"] == float("inf")


def test_ranks_follow_means_and_ties_are_shared():
    scores = np.array([[0.9, 0.8, 0.9], [0.1, 0.2, 0.1], [0.9, 0.8, 0.9]])
    rank, drawn = rank_distribution(scores, ["a", "b", "c"], resamples=50)
    assert rank.tolist() == [1.5, 3, 1.5] and (drawn == rank).all()
    rank, _ = rank_distribution(scores, ["a", "b", "c"], higher_is_better=False, resamples=5)
    assert rank.tolist() == [2.5, 1, 2.5]

"""Classification, presence, intervals and tables."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimed.evaluation.tables import markdown_table, means_by, read_cases, write_cases
from unimed.files import write_report
from unimed.metrics import classification as cls
from unimed.metrics.presence import presence_scores
from unimed.metrics.statistics import Interval, bootstrap, bootstrap_mean, clopper_pearson, paired_difference

labels = st.lists(st.sampled_from("abc"), min_size=3, max_size=20)


@given(labels, st.randoms())
def test_classification_equals_scikit_learn(truth, random):
    metrics = pytest.importorskip("sklearn.metrics")
    predicted = [random.choice("abc") for _ in truth]
    assert cls.accuracy(predicted, truth) == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert cls.macro_f1(predicted, truth) == pytest.approx(
        metrics.f1_score(truth, predicted, average="macro", zero_division=0)
    )
    recalls = [row["recall"] for row in cls.per_class(predicted, truth).values() if row["support"]]
    assert cls.balanced_accuracy(predicted, truth) == pytest.approx(np.mean(recalls))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_ordered_pairs(items):
    positive = [score for score, flag in items if flag]
    negative = [score for score, flag in items if not flag]
    value = cls.auroc([s for s, _ in items], [f for _, f in items])
    if not positive or not negative:
        assert math.isnan(value)
    else:
        wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
        assert value == pytest.approx(wins / len(positive) / len(negative))


def test_majority_baseline_comes_from_training_labels():
    result = cls.majority_baseline(["ct", "ct", "mr"], ["mr", "mr", "mr", "ct"])
    assert result["answer"] == "ct" and result["accuracy"] == 0.25 and result["balanced_accuracy"] == 0.5
    with pytest.raises(ValueError, match="training set"):
        cls.majority_baseline([], ["ct"])
    assert cls.macro_auroc(np.eye(3), [0, 1, 2]) == 1


def test_presence_counts_masks_painted_on_absent_objects():
    result = presence_scores([0.9, 0.8, 0.7, 0.1], [True, False, True, False], [10, 5, 0, 0])
    assert result["presence_auroc"] == 0.75 and result["false_mask_rate"] == 0.5 and result["missed_mask_rate"] == 0.5
    assert result["presence_specificity"] == 0.5 and result["absent"] == 2
    assert math.isnan(presence_scores([0.5], [True])["presence_auroc"])
    with pytest.raises(ValueError, match="sigmoid"):
        presence_scores([3.0], [True])


def test_bootstrap_covers_the_mean_of_independent_draws():
    generator = np.random.default_rng(0)
    inside = sum(
        interval.low <= 0.3 <= interval.high
        for interval in (bootstrap_mean(generator.random(60) < 0.3, resamples=200, seed=k) for k in range(200))
    )
    assert 0.88 <= inside / 200 <= 0.99


def test_clustering_widens_the_interval_when_a_patient_repeats_itself():
    values = np.repeat(np.random.default_rng(1).random(10), 20)
    patients = np.repeat(np.arange(10), 20)
    plain, clustered = bootstrap_mean(values), bootstrap_mean(values, groups=patients)
    assert clustered.value == plain.value == pytest.approx(values.mean())
    assert clustered.high - clustered.low > 2.5 * (plain.high - plain.low)
    assert math.isnan(bootstrap_mean(values, groups=np.zeros(200)).low), "one patient has no spread"
    with pytest.raises(ValueError, match="groups has 1"):
        bootstrap(np.mean, 3, groups=["a"])


def test_paired_difference_sees_what_separate_means_hide():
    difficulty = np.random.default_rng(2).random(50)
    gain = paired_difference(difficulty + 0.01, difficulty)
    assert gain.low > 0 and gain.value == pytest.approx(0.01)


@pytest.mark.parametrize("hits, n", [(0, 10), (10, 10), (90, 100), (1, 1000)])
def test_clopper_pearson_equals_scipy(hits, n):
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(0.95, method="exact")
    interval = clopper_pearson(hits, n)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_table_shows_the_command_and_hides_nan():
    table = markdown_table(
        [{"target": "a|b", "dice": 0.51234, "n": 3}, {"target": "c", "dice": float("nan"), "n": 4}],
        command="python tools/test.py",
    )
    assert table.splitlines()[2].startswith("| a\\|b") and "0.512" in table and "| -" in table
    assert table.endswith("`python tools/test.py`\n")
    assert "[0.100, 0.900]" in markdown_table([{"x": Interval(0.5, 0.1, 0.9)}])
    with pytest.raises(ValueError, match="'y' is in no row"):
        markdown_table([{"x": 1}], columns=["y"])


def test_case_file_is_whole_or_not_at_all(tmp_path):
    path = write_cases(
        tmp_path / "deep" / "cases.jsonl", [{"a": np.float32(0.5), "b": float("nan"), "c": np.arange(2)}]
    )
    assert read_cases(path) == [{"a": 0.5, "b": None, "c": [0, 1]}]

    def interrupted():
        yield {"a": 1}
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_cases(path, interrupted())
    assert read_cases(path) == [{"a": 0.5, "b": None, "c": [0, 1]}]
    assert [p.name for p in path.parent.iterdir()] == ["cases.jsonl"], "no half-written file stays behind"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match="cases.jsonl:2: not JSON"):
        read_cases(path)
    report = write_report(tmp_path / "r.json", {"iou": Interval(0.5, 0.1, 0.9)})
    assert json.loads(report.read_text())["iou"]["high"] == 0.9


def test_centred_interval_holds_the_value_of_a_statistic_that_resampling_inflates():
    values = np.random.default_rng(3).normal(size=200)

    def roughness(index):  # like a calibration error: the mean of absolute means of small bins
        return float(np.abs(values[index][:200].reshape(40, 5).mean(1)).mean())

    order = np.argsort(np.tile(np.arange(5), 40), kind="stable")
    values = np.sort(np.abs(values))[order] * np.where(np.arange(200) % 2, 1, -1)
    plain, centred = bootstrap(roughness, 200, resamples=300), bootstrap(roughness, 200, resamples=300, center=True)
    assert not plain.low <= plain.value <= plain.high
    assert centred.low <= centred.value <= centred.high and centred.value == plain.value


def test_means_by_group_rows_and_resample_patients():
    rows = [
        {
            "modality": "CT" if i % 2 else "MR",
            "target": "liver",
            "dice": (i % 4) / 4,
            "group": f"p{i // 4}",
            "none": None,
        }
        for i in range(40)
    ]
    table = means_by(rows, ("modality", "target"), ["dice", "none"])
    assert [(r["modality"], r["cases"]) for r in table] == [("CT", 20), ("MR", 20)]
    assert table[0]["dice"].value == 0.5 and math.isnan(table[0]["none"].value)
    assert table[0]["dice"].low == table[0]["dice"].high == 0.5, "every patient has the same mean"
    assert "| CT" in markdown_table(table)
    with pytest.raises(ValueError, match="'iou' is in no row"):
        means_by(rows, "target", ["iou"])


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0c", "\r", "\ud800"])
def test_cases_with_any_sign_are_read_back(tmp_path, sign):
    rows = [{"case": "a", "said": f"one{sign}two"}, {"case": f"b{sign}", "said": ""}]
    read = read_cases(write_cases(tmp_path / "cases.jsonl", rows))
    assert [{name: row[name] for name in ("case", "said")} for row in read] == rows
    assert [row["predicted"] for row in read] == [row["said"] for row in rows]

"""Retrieval and zero-shot metrics as recorded, and what they say to bad input."""

import json

import numpy as np
import pytest
from golden_files import SMALL, tensors
from safetensors.numpy import load_file

from unimed.evaluation.probe import anchored_regression, few_shot, linear_probe
from unimed.metrics.retrieval import chance_recall, ranks, retrieval_scores
from unimed.metrics.zero_shot import zero_shot_intervals, zero_shot_scores

FOLDER = SMALL / "unimed_clip"
RECORDED = json.loads((FOLDER / "zeroshot.json").read_text())
TENSORS = load_file(FOLDER / "zeroshot.safetensors")
CASES = [name for name in RECORDED if name.startswith("case_") and name != "case_radimagenet"]


def similarity_of(name):
    features = TENSORS[f"{name}.image_features"]
    return features / np.linalg.norm(features, axis=1, keepdims=True) @ TENSORS[f"{name}.class_weights_used"].T


@pytest.mark.parametrize("name", CASES)
def test_recorded_scores_of_sets(name):
    scores = zero_shot_scores(similarity_of(name), TENSORS[f"{name}.targets"])
    words = {"acc": "accuracy", "auc_roc": "auc", "f1_score": "f1", "precision_score": "precision",
             "recall_score": "recall"}  # fmt: skip
    for theirs, value in RECORDED[name]["result"].items():
        assert 100 * scores[words[theirs]] == pytest.approx(value, abs=1e-9), theirs
    assert (similarity_of(name).argmax(1) == TENSORS[f"{name}.predictions"]).all()


def test_recorded_class_weights():
    """Weights of a class: mean of its unit prompts, unit again. RSNA used the first prompt only."""
    for name in CASES:
        given = RECORDED[name]["prompts_per_class_given"]
        used = RECORDED[name]["prompts_per_class_after_call"]
        parts = np.split(TENSORS[f"{name}.prompt_embeddings"], np.cumsum(given)[:-1])
        rows = []
        for part, count in zip(parts, used, strict=True):
            unit = part[:count] / np.linalg.norm(part[:count], axis=1, keepdims=True)
            rows.append(unit.mean(0) / np.linalg.norm(unit.mean(0)))
        assert np.abs(np.stack(rows) - TENSORS[f"{name}.class_weights_used"]).max() < 1e-5
    assert used is not None and RECORDED["case_rsna_pneumonia"]["prompts_per_class_after_call"] == [1, 1]


def test_recorded_scores_of_subsets():
    kept = {name: tensor for name, tensor in tensors("unimed_clip", "zeroshot.safetensors").items()}
    features, weights = kept["case_radimagenet.image_features"], kept["case_radimagenet.class_weights_used"]
    similarity = (features / features.norm(dim=1, keepdim=True) @ weights.T).numpy()
    spans = {"US acc": [*range(144, 158), 164], "MRI acc": [*range(85), *range(112, 136), *range(137, 144)],
             "CT acc": [*range(85, 112), 136, *range(158, 164)]}  # fmt: skip
    scores = zero_shot_scores(similarity, kept["case_radimagenet.targets"].numpy(), subsets=spans)
    result = RECORDED["case_radimagenet"]["result"]
    assert 100 * scores["accuracy"] == pytest.approx(result["acc"])
    for name in spans:
        assert 100 * scores[name] == pytest.approx(result[name])


def test_recorded_metrics():
    outputs, targets = TENSORS["metrics_misc.outputs"], TENSORS["metrics_misc.targets"]
    scores, expected = zero_shot_scores(outputs, targets), RECORDED["metrics_misc"]
    assert [100 * scores["accuracy"], 100 * scores["top5_accuracy"]] == pytest.approx(
        expected["accuracy_top1_top5"], abs=1e-4
    )
    assert 100 * scores["balanced_accuracy"] == pytest.approx(expected["mean_per_class"])


def test_recorded_retrieval():
    tensors = load_file(FOLDER / "retrieval.safetensors")
    expected = json.loads((FOLDER / "retrieval.json").read_text())["metrics"]
    scores = retrieval_scores(tensors["image_features"] @ tensors["text_features"].T)
    assert scores == pytest.approx(expected)


def test_ranks():
    table = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2]])
    assert ranks(table, np.array([0, 1])).tolist() == [0, 2]  # ties count against
    fits = np.array([[False, True, True], [True, False, False]])
    assert ranks(table, fits).tolist() == [1, 2]
    with pytest.raises(ValueError, match="nothing fits query 1"):
        ranks(table, np.array([[True, False, False], [False] * 3]))
    assert chance_recall(np.eye(10, dtype=bool), 3) == pytest.approx(0.3)


def test_intervals_hold_the_value():
    name = CASES[0]
    targets = TENSORS[f"{name}.targets"]
    for interval in zero_shot_intervals(similarity_of(name), targets, resamples=100).values():
        assert interval.low <= interval.value <= interval.high and interval.low < interval.high
    with pytest.raises(ValueError, match="targets reach"):
        zero_shot_scores(np.zeros((2, 2)), [0, 5])
    with pytest.raises(ValueError, match="NaN"):
        zero_shot_scores(np.full((2, 2), np.nan), [0, 1])


def clusters(count, seed=0):
    generator = np.random.default_rng(seed)
    centres = np.eye(3, 8)
    targets = np.arange(count) % 3
    features = centres[targets] + 0.35 * generator.normal(size=(count, 8))
    return features / np.linalg.norm(features, axis=1, keepdims=True), targets, centres


def test_probes():
    pytest.importorskip("sklearn")
    train, test = clusters(90), clusters(60, seed=1)
    assert linear_probe(*train[:2], *test[:2])[0]["accuracy"] > 0.85
    one = few_shot(*train[:2], *test[:2], k=1, seeds=5)
    many = few_shot(*train[:2], *test[:2], k=16, seeds=5)
    assert many["accuracy"] > one["accuracy"] > 0.4
    anchored = few_shot(*train[:2], *test[:2], k=1, seeds=5, start=train[2])
    assert anchored["accuracy"] > one["accuracy"]  # a good start is worth more than one image
    again = few_shot(*train[:2], *test[:2], k=1, seeds=5)
    assert again == one
    stuck = anchored_regression(train[0], train[1], train[2], strength=1e6)
    assert np.abs(stuck - train[2]).max() < 1e-3
    with pytest.raises(ValueError, match="without images"):
        few_shot(train[0], train[1], test[0], test[1], k=1, classes=5)
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(train[0], np.zeros(90, int), test[0], test[1])

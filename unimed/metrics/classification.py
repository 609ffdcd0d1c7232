"""Classification: accuracy, balanced accuracy, F1 by macro mean, AUC, and the majority class beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import scipy

from unimed.metrics.registered import metric


def _check(predicted: Sequence, truth: Sequence) -> None:
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} predictions cannot be compared with {len(truth)} labels")


@metric("accuracy", "labels", aggregation="over the set", nan="no samples")
def accuracy(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Share of equal labels; NaN without samples."""
    _check(predicted, truth)
    return float(np.mean([p == t for p, t in zip(predicted, truth, strict=True)])) if len(truth) else float("nan")


def per_class(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> dict[Hashable, dict[str, float]]:
    """Precision, recall, F1 and support of every class that occurs in truth or prediction (0 where undefined)."""
    _check(predicted, truth)
    table = {}
    for label in sorted(set(truth) | set(predicted), key=str):
        hits = sum(p == label and t == label for p, t in zip(predicted, truth, strict=True))
        predicted_count, support = sum(p == label for p in predicted), sum(t == label for t in truth)
        table[label] = {
            "precision": hits / predicted_count if predicted_count else 0.0,
            "recall": hits / support if support else 0.0,
            "f1": 2 * hits / (predicted_count + support),
            "support": support,
        }
    return table


@metric("balanced_accuracy", "labels", aggregation="over the set", nan="no samples")
def balanced_accuracy(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Mean recall over the classes that occur in the truth; NaN without samples."""
    recalls = [row["recall"] for row in per_class(predicted, truth).values() if row["support"]]
    return float(np.mean(recalls)) if recalls else float("nan")


@metric("macro_f1", "labels", aggregation="over the set", nan="no samples")
def macro_f1(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Mean F1 over the classes that occur in truth or prediction; NaN without samples.

    An answer that is no class at all counts as a class of its own with F1 0, as in scikit-learn.
    """
    scores = [row["f1"] for row in per_class(predicted, truth).values()]
    return float(np.mean(scores)) if scores else float("nan")


@metric("auroc", "detection", aggregation="over the set", nan="one class only")
def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half. NaN with one class.

    Raises:
        ValueError: lengths differ, or a score is NaN.
    """
    _check(scores, positive)
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if np.isnan(scores).any():
        raise ValueError(f"scores[{int(np.isnan(scores).argmax())}] is NaN")
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def macro_auroc(scores: np.ndarray, truth: Sequence[int]) -> float:
    """Mean one-against-rest AUROC of scores [N, C] over the classes that occur; NaN when none can be scored."""
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if scores.ndim != 2 or len(scores) != len(truth):
        raise ValueError(f"scores must be [N, C] with N = {len(truth)}, got {scores.shape}")
    values = [auroc(scores[:, label], truth == label) for label in range(scores.shape[1])]
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")


def majority_baseline(train_labels: Sequence[Hashable], truth: Sequence[Hashable]) -> dict[str, float | Hashable]:
    """What answering the commonest training label always would score on `truth` (ties: first by name).

    Raises:
        ValueError: no training labels.
    """
    if not len(train_labels):
        raise ValueError("train_labels is empty: the majority class is taken from the training set, never the test set")
    counts = Counter(train_labels)
    answer = min(counts, key=lambda label: (-counts[label], str(label)))
    constant = [answer] * len(truth)
    return {
        "answer": answer,
        "accuracy": accuracy(constant, truth),
        "balanced_accuracy": balanced_accuracy(constant, truth),
        "macro_f1": macro_f1(constant, truth),
    }


def summarize(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1 in one dict, with the number of samples."""
    return {
        "accuracy": accuracy(predicted, truth),
        "balanced_accuracy": balanced_accuracy(predicted, truth),
        "macro_f1": macro_f1(predicted, truth),
        "samples": len(truth),
    }

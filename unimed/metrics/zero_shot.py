"""Zero-shot classification from similarities of images and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unimed.metrics.classification import auroc, macro_auroc, macro_f1, per_class
from unimed.metrics.registered import metric
from unimed.metrics.statistics import Interval, bootstrap


def zero_shot_scores(
    similarity: np.ndarray,
    targets: Sequence[int],
    subsets: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1 and AUC (fractions of 1).

    Args:
        similarity: [N, C]; the prediction is the largest.
        targets: [N], numbers of the classes.
        subsets: name -> classes; the accuracy over the images of these classes is added under that name.

    `auc` of two classes ranks by `similarity[:, 1] - similarity[:, 0]`, with F1, precision and recall of class 1; of
    more classes it is the mean one-against-rest AUC. Top-5 accuracy is added from six classes on.

    Raises:
        ValueError: shapes differ, a target outside the classes, or NaN.
    """
    similarity, targets = _checked(similarity, targets)
    predicted = similarity.argmax(1)
    recalls = [row["recall"] for row in per_class(predicted.tolist(), targets.tolist()).values() if row["support"]]
    scores = {
        "accuracy": float((predicted == targets).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": macro_f1(predicted.tolist(), targets.tolist()),
        "auc": _auc(similarity, targets),
    }
    if similarity.shape[1] == 2:
        row = per_class(predicted.tolist(), targets.tolist()).get(1, {"f1": 0.0, "precision": 0.0, "recall": 0.0})
        scores |= {name: row[name] for name in ("f1", "precision", "recall")}
    if similarity.shape[1] > 5:
        top = np.argsort(-similarity, axis=1, kind="stable")[:, :5]
        scores["top5_accuracy"] = float((top == targets[:, None]).any(1).mean())
    for name, classes in (subsets or {}).items():
        inside = np.isin(targets, list(classes))
        scores[name] = float((predicted == targets)[inside].mean()) if inside.any() else float("nan")
    return scores | {"samples": len(targets), "chance": 1 / similarity.shape[1]}


def zero_shot_intervals(
    similarity: np.ndarray,
    targets: Sequence[int],
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy", "auc"),
    groups: Sequence | None = None,
    resamples: int = 500,
) -> dict[str, Interval]:
    """Bootstrap intervals of "accuracy", "balanced_accuracy" and "auc"; patients (`groups`) are resampled whole."""
    similarity, targets = _checked(similarity, targets)
    hits = similarity.argmax(1) == targets

    def balanced(index):
        return np.mean([hits[index][targets[index] == c].mean() for c in np.unique(targets[index])])

    statistics = {
        "accuracy": lambda index: hits[index].mean(),
        "balanced_accuracy": balanced,
        "auc": lambda index: _auc(similarity[index], targets[index]),
    }
    unknown = [name for name in metrics if name not in statistics]
    if unknown:
        raise ValueError(f"no interval for {unknown[0]!r}; known are {', '.join(statistics)}")
    return {m: bootstrap(statistics[m], len(targets), groups=groups, resamples=resamples) for m in metrics}


def _auc(similarity, targets) -> float:
    if similarity.shape[1] == 2:
        return auroc(similarity[:, 1] - similarity[:, 0], targets == 1)
    return macro_auroc(similarity, targets)


def _checked(similarity, targets):
    similarity, targets = np.asarray(similarity, dtype=np.float64), np.asarray(targets)
    if similarity.ndim != 2 or len(similarity) != len(targets) or not len(targets):
        raise ValueError(f"similarity must be [N, C] with N = {len(targets)} > 0, got {similarity.shape}")
    if np.isnan(similarity).any():
        raise ValueError("similarity holds NaN")
    if targets.min() < 0 or targets.max() >= similarity.shape[1]:
        raise ValueError(
            f"targets reach from {targets.min()} to {targets.max()}, there are {similarity.shape[1]} classes"
        )
    return similarity, targets


@metric("top1_accuracy", "similarity")
def top1_accuracy(similarity: np.ndarray, targets: Sequence[int]) -> float:
    """Fraction of images whose largest similarity is that of their class."""
    return zero_shot_scores(similarity, targets)["accuracy"]

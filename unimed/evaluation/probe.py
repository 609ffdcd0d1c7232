"""Linear probing and few-shot classifiers on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from scipy.special import log_softmax, softmax

from unimed.metrics.classification import balanced_accuracy


def linear_probe(
    train: np.ndarray, train_targets: Sequence[int], test: np.ndarray, test_targets: Sequence[int], seed: int = 0
) -> tuple[dict[str, float], np.ndarray]:
    """Logistic regression on features [N, D]; its strength is chosen by cross-validation on the training part.

    Returns:
        {accuracy, balanced_accuracy, C}, and the predicted classes [N] of the test part.

    Raises:
        ImportError: scikit-learn is not there (extra `eval`).
        ValueError: fewer than two classes in the training part.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    train_targets, test_targets = np.asarray(train_targets), np.asarray(test_targets)
    counts = np.bincount(train_targets)
    counts = counts[counts > 0]
    if len(counts) < 2:
        raise ValueError("a linear probe needs training images of at least two classes")
    grid = np.logspace(-3, 4, 8)
    folds = int(min(5, counts.min()))
    if folds >= 2:
        cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
        search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": grid}, cv=cut).fit(train, train_targets)
        best, chosen = search.best_estimator_, float(search.best_params_["C"])
    else:
        chosen = 1.0
        best = LogisticRegression(max_iter=2000, C=chosen).fit(train, train_targets)
    predicted = best.predict(test)
    return {
        "accuracy": float((predicted == test_targets).mean()),
        "balanced_accuracy": balanced_accuracy(predicted.tolist(), test_targets.tolist()),
        "C": chosen,
    }, predicted


def anchored_regression(
    features: np.ndarray, targets: Sequence[int], start: np.ndarray, strength: float = 1.0, scale: float = 20.0
) -> np.ndarray:
    """Weights [C, D] of a softmax classifier that is pulled to `start`: cross-entropy + strength |W - start|^2 / 2.

    With `start` the text weights it lies between zero-shot and logistic regression; with zeros it is the latter.
    Features of unit length are multiplied by `scale`.
    """
    features, targets = np.asarray(features, np.float64) * scale, np.asarray(targets)
    start = np.asarray(start, np.float64)
    rows = np.arange(len(targets))

    def loss(flat):
        weights = flat.reshape(start.shape)
        logits = features @ weights.T
        value = -log_softmax(logits, axis=1)[rows, targets].mean() + strength * ((weights - start) ** 2).sum() / 2
        error = softmax(logits, axis=1)
        error[rows, targets] -= 1
        return value, (error.T @ features / len(rows) + strength * (weights - start)).ravel()

    return scipy.optimize.minimize(
        loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300}
    ).x.reshape(start.shape)


def few_shot(
    train: np.ndarray,
    train_targets: Sequence[int],
    test: np.ndarray,
    test_targets: Sequence[int],
    k: int,
    *,
    seeds: int = 5,
    start: np.ndarray | None = None,
    classes: int | None = None,
    strength: float = 0.1,
) -> dict[str, float]:
    """Mean accuracy of classifiers on k training images per class over `seeds` draws (seeds 0, 1, ...).

    Args:
        start: text weights [C, D] the classifier is pulled to; zeros if None.

    Returns:
        accuracy, balanced_accuracy, deviation (of the accuracy over the draws).

    Raises:
        ValueError: k < 1 or a class without training images.
    """
    train_targets, test_targets = np.asarray(train_targets), np.asarray(test_targets)
    count = classes or int(max(train_targets.max(), test_targets.max())) + 1
    members = [np.flatnonzero(train_targets == c) for c in range(count)]
    empty = [c for c, part in enumerate(members) if not len(part)]
    if k < 1 or empty:
        raise ValueError(f"few-shot needs k >= 1 and training images of every class; k={k}, without images: {empty}")
    start = np.zeros((count, train.shape[1])) if start is None else start
    accuracies, balanced = [], []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        drawn = np.concatenate([generator.permutation(part)[:k] for part in members])
        weights = anchored_regression(train[drawn], train_targets[drawn], start, strength)
        predicted = (test @ weights.T).argmax(1)
        accuracies.append(float((predicted == test_targets).mean()))
        balanced.append(balanced_accuracy(predicted.tolist(), test_targets.tolist()))
    return {
        "accuracy": float(np.mean(accuracies)),
        "balanced_accuracy": float(np.mean(balanced)),
        "deviation": float(np.std(accuracies)),
    }

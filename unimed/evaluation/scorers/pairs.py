"""Pairs of images and texts: retrieval in both directions, and zero-shot classes, from features of unit length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unimed.evaluation.cases import case_row
from unimed.io.result import Prediction
from unimed.metrics.retrieval import chance_recall, ranks, retrieval_scores
from unimed.metrics.zero_shot import zero_shot_intervals, zero_shot_scores
from unimed.structures import Sample


def retrieval_tables(
    images: np.ndarray,
    texts: np.ndarray,
    fits: np.ndarray,
    names: tuple[Sequence[str], Sequence[str]],
    *,
    at: Sequence[int] = (1, 5, 10),
    resamples: int = 500,
    **about,
) -> tuple[list[dict], list[dict], dict]:
    """Recall from images to their texts and back, beside what a random order gives.

    Args:
        images, texts: features [N, D] and [M, D].
        fits: bool [N, M], which texts belong to which image.
        names: of the images and of the texts, for the rows.
        at: places that count.
        resamples: of the intervals; 0 leaves them out.
        about: further columns of every row (`dataset`, ...).

    Returns:
        (a line per direction, a row of kind "retrieval" per query with the `rank` of its first right partner, from 1,
        {name: value}).

    Raises:
        ValueError: fewer than two images, NaN, or an image or a text that nothing belongs to.
    """
    if len(images) < 2:
        raise ValueError(f"retrieval needs at least two pairs, got {len(images)}")
    similarity = images @ texts.T
    scores = retrieval_scores(similarity, fits, at=at, resamples=resamples)
    lines, rows = [], []
    ways = (("image_to_text", similarity, fits, names[0]), ("text_to_image", similarity.T, fits.T, names[1]))
    for way, table, truth, queries in ways:
        lines.append(
            {"direction": way, "queries": len(truth), "gallery": truth.shape[1]}
            | {f"R@{k}": scores[f"{way}_R@{k}"] for k in at}
            | {f"chance_R@{k}": chance_recall(truth, k) for k in at if k <= 5}
            | {"median_rank": scores[f"{way}_median_rank"]}
        )
        rows += [
            case_row(name, "retrieval", target=way, rank=int(place) + 1, gallery=truth.shape[1], **about)
            for name, place in zip(queries, ranks(table, truth), strict=True)
        ]
    return lines, rows, scores


def score_pairs(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    classifier: Callable[[Sequence[str]], np.ndarray] | None = None,
    labels: Sequence[str] | None = None,
    *,
    resamples: int = 500,
) -> dict:
    """Retrieval between images and their captions, and zero-shot accuracy where samples have a label.

    Equal captions of different images count as right. Beside each number stands what chance gives, beside accuracy
    also the share of the commonest class, which answering it always would score.

    Args:
        predictions: `features` of each: "image" [D], "captions" (K texts) and "texts" [K, D].
        classifier: class names -> weights [C, D]; needed where samples have a label.
        labels: class names; None takes those that occur.
        resamples: of the intervals; 0 leaves them out.

    Returns:
        {"summary", "tables", "cases"}.

    Raises:
        ValueError: a label that is not among `labels`, or fewer than two classes.
    """
    summary, tables, cases = {}, {}, []
    texts = list(dict.fromkeys(c for p in predictions for c in p.features["captions"]))
    images = np.stack([p.features["image"] for p in predictions]) if len(predictions) else np.zeros((0, 1))
    if texts:
        places = {text: number for number, text in enumerate(texts)}
        features = np.zeros((len(texts), images.shape[1]), np.float32)
        fits = np.zeros((len(predictions), len(texts)), bool)
        for row, prediction in enumerate(predictions):
            for caption, feature in zip(*(prediction.features[k] for k in ("captions", "texts")), strict=True):
                features[places[caption]] = feature
                fits[row, places[caption]] = True
        names = [sample.sample_id for sample in samples], texts
        tables["retrieval"], cases, found = retrieval_tables(
            images, features, fits, names, at=(1, 5), resamples=resamples
        )
        summary |= {name: value for name, value in found.items() if "R@" in name}
    labeled = [place for place, sample in enumerate(samples) if sample.labels.get("label")]
    if labeled:
        line, rows, scores = _classes(
            [samples[place] for place in labeled], images[labeled], classifier, labels, resamples
        )
        tables["zero_shot"], summary = [line], summary | scores
        cases += rows
    return {"summary": {k: getattr(v, "value", v) for k, v in summary.items()}, "tables": tables, "cases": cases}


def _classes(samples: Sequence[Sample], images: np.ndarray, classifier, labels, resamples: int):
    true = [str(sample.labels["label"]) for sample in samples]
    names = list(labels or sorted(set(true)))
    unknown = sorted(set(true) - set(names))
    if unknown:
        raise ValueError(f"{len(unknown)} labels of the samples are not among the task's labels, first {unknown[0]!r}")
    if len(names) < 2:
        raise ValueError(f"zero-shot accuracy needs at least two labels, got {names}; name them in `labels`")
    similarity = images @ classifier(names).T
    targets = [names.index(name) for name in true]
    scores = zero_shot_scores(similarity, targets)
    line = {"classes": len(names), "cases": len(targets)} | {
        k: scores[k] for k in ("accuracy", "balanced_accuracy", "chance")
    }
    if resamples:
        owners = [sample.patient_id or sample.sample_id for sample in samples]
        line |= zero_shot_intervals(
            similarity, targets, ("accuracy", "balanced_accuracy"), groups=owners, resamples=resamples
        )
    line["commonest_class"] = float(np.bincount(targets).max() / len(targets))
    rows = [
        class_row(sample.sample_id, names, values, target, patient=sample.patient_id, modality=sample.modality)
        for sample, values, target in zip(samples, similarity, targets, strict=True)
    ]
    return line, rows, {k: scores[k] for k in ("accuracy", "balanced_accuracy", "macro_f1")}


def class_row(case: str, names: Sequence[str], similarity: np.ndarray, target: int, **about) -> dict:
    """A row of kind "class": the class whose text is nearest to the image, beside the true one."""
    guess = int(np.argmax(similarity))
    return case_row(
        case,
        "class",
        **about,
        task="zero_shot",
        target=names[target],
        correct=float(guess == target),
        predicted=names[guess],
        truth=names[target],
        similarity=[round(float(value), 5) for value in similarity],
    )

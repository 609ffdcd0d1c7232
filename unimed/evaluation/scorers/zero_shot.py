"""Zero-shot sets, retrieval and probes with a contrastive model: files in, tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unimed.data.readers.zero_shot_sets import ZeroShotSet, ZeroShotSetError, read_set
from unimed.evaluation.cases import case_row
from unimed.evaluation.feature_cache import FeatureCache
from unimed.evaluation.probe import few_shot, linear_probe
from unimed.evaluation.scorers.pairs import class_row, retrieval_tables
from unimed.metrics.zero_shot import zero_shot_intervals, zero_shot_scores


def prompts_for(one: ZeroShotSet, imported: Mapping | None, compat: str | None = None) -> tuple[dict, str]:
    """Prompts by class name and where they come from: "published" (by fingerprint) or "own".

    Raises:
        ZeroShotSetError: imported prompts lack a class.
    """
    prompts = (imported or {}).get(one.id) or one.own_prompts()
    missing = [name for name in one.names if not prompts.get(name)]
    if missing:
        raise ZeroShotSetError(f"{one.id}: there are no prompts for class {missing[0]!r}")
    origin = "published" if one.is_published(prompts) else "own"
    if compat == "reference" and one.first_prompt_only_in_reference:
        prompts = {name: texts[:1] for name, texts in prompts.items()}
    return {name: list(prompts[name]) for name in one.names}, origin


def evaluate_set(
    cache: FeatureCache,
    one: ZeroShotSet,
    root: str | Path,
    imported: Mapping | None = None,
    class_norm: bool = False,
    resamples: int = 500,
    compat: str | None = None,
) -> tuple[dict, list[dict]]:
    """Scores of a set (a row of the table) and one line per image.

    Args:
        root: the folder of the set.
        imported: prompts, see `unimed.data.readers.zero_shot_sets.import_prompts`.
        compat: "reference" uses one prompt per class for RSNA, as the published evaluation did by a left-over line.

    Raises:
        ZeroShotSetError: the set or its prompts cannot be read.
    """
    paths, targets = read_set(one, root)
    prompts, origin = prompts_for(one, imported, compat)
    names, similarity = cache.similarity(paths, prompts, class_norm=class_norm)
    scores = zero_shot_scores(similarity, targets)
    intervals = zero_shot_intervals(similarity, targets, resamples=resamples) if resamples else {}
    row = {
        "set": one.id,
        "modality": one.modality,
        "images": len(paths),
        "classes": len(names),
        "metric": one.headline,
        "headline": intervals.get(one.headline, scores[one.headline]),
        "chance": 0.5 if one.headline == "auc" else 1 / len(names),
        **{name: intervals.get(name, scores[name]) for name in ("accuracy", "balanced_accuracy", "auc")},
        "macro_f1": scores["macro_f1"],
        "prompts": origin,
        "overlap": "see below" if one.overlap else "",
    }
    cases = [
        class_row(path.name, names, values, target, dataset=one.id, modality=one.modality)
        for path, target, values in zip(paths, targets, similarity, strict=True)
    ]
    return row, cases


def average_rows(rows: Sequence[Mapping], sets: Mapping[str, ZeroShotSet]) -> list[dict]:
    """Mean of the headline metric per modality, over all sets, and over those without known overlap with training."""

    def value(row):
        return getattr(row["headline"], "value", row["headline"])

    table = []
    for modality in dict.fromkeys(row["modality"] for row in rows):
        part = [value(row) for row in rows if row["modality"] == modality]
        table.append({"group": modality, "sets": len(part), "mean headline": float(np.mean(part))})
    clean = [value(row) for row in rows if not sets[row["set"]].overlap]
    table.append({"group": "all", "sets": len(rows), "mean headline": float(np.mean([value(row) for row in rows]))})
    if clean and len(clean) < len(rows):
        table.append({"group": "without known overlap", "sets": len(clean), "mean headline": float(np.mean(clean))})
    return table


def overlap_notes(rows: Sequence[Mapping], sets: Mapping[str, ZeroShotSet]) -> list[str]:
    """What of these sets UniMed-CLIP may have seen in training."""
    notes = [f"{row['set']}: {sets[row['set']].overlap}." for row in rows if sets[row["set"]].overlap]
    if notes:
        notes.append(
            "MIMIC-CXR and Quilt-1M were trained on whole; PMC-OA, LLaVA-Med and ROCOv2 are all taken from PubMed "
            "Central. `tools/clip.py overlap` compares your own folders."
        )
    return notes


def retrieval(
    cache: FeatureCache, pairs: Sequence[tuple[Path, Sequence[str]]], resamples: int = 500
) -> tuple[list[dict], list[dict]]:
    """Recall@1, 5 and 10 from images to their captions and back (a line each), and a row per query.

    Args:
        pairs: an image file and its captions. Equal captions of several images fit all of them.

    Raises:
        ValueError: fewer than two pairs.
    """
    texts = list(dict.fromkeys(caption for _, captions in pairs for caption in captions))
    places = {text: number for number, text in enumerate(texts)}
    fits = np.zeros((len(pairs), len(texts)), bool)
    for row, (_, captions) in enumerate(pairs):
        fits[row, [places[caption] for caption in captions]] = True
    if len(pairs) < 2:
        raise ValueError(f"retrieval needs at least two pairs, got {len(pairs)}")
    features = cache.encode([path for path, _ in pairs]), cache.model.encode_text(texts).numpy()
    names = [path.name for path, _ in pairs], texts
    lines, rows, _ = retrieval_tables(*features, fits, names, resamples=resamples)
    return lines, rows


def probe(
    cache: FeatureCache,
    train: tuple[Sequence[Path], Sequence[int]],
    test: tuple[Sequence[Path], Sequence[int]],
    labels: Sequence[str],
    templates: Sequence[str] | None = None,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 5,
) -> tuple[list[dict], list[dict]]:
    """Zero-shot, few-shot (with and without the text weights as a start) and linear probe on frozen features.

    Returns:
        a line per method, those of few-shot being means over `seeds` draws of the training images with the deviation
        beside; and a row of kind "class" per test image and method, few-shot left out.
    """
    first, second = cache.encode(train[0]), cache.encode(test[0])
    _, weights = cache.model.classifier(labels, templates)
    start = weights.numpy()
    zero = zero_shot_scores(second @ start.T, test[1])
    lines = [{"method": "zero-shot", "images per class": 0, "accuracy": zero["accuracy"],
             "balanced_accuracy": zero["balanced_accuracy"], "deviation": float("nan")}]  # fmt: skip
    for k in shots:
        for name, anchor in (("few-shot", None), ("few-shot from the text", start)):
            found = few_shot(first, train[1], second, test[1], k, seeds=seeds, start=anchor, classes=len(labels))
            lines.append({"method": name, "images per class": k} | found)
    probed, guesses = linear_probe(first, train[1], second, test[1])
    lines.append({"method": "linear probe", "images per class": "all"} | probed)
    rows = []
    for path, target, values, guess in zip(test[0], test[1], second @ start.T, guesses, strict=True):
        about = dict(task="zero_shot", target=labels[target], truth=labels[target])
        for method, one in (("zero-shot", int(values.argmax())), ("linear probe", int(guess))):
            about |= {"task": method, "correct": float(one == target), "predicted": labels[one]}
            rows.append(case_row(path.name, "class", **about))
    return lines, rows

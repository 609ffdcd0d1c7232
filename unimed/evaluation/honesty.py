"""Three questions about honesty that every test of grounding asks beside its own: wordings, nonsense, mirrored images.

    asked = honesty_samples(samples, most=32)
    scores = score_honesty(samples, predictions, asked, task.predict_samples(asked.samples))

- *Paraphrases*: the same question in k held-out wordings. Mean, worst and variance of the Dice over wordings.
- *False masks*: the rate at which something is shown for what is not there, of absent things and of nonsense.
- *Mirror*: image mirrored, the words left and right exchanged. Dice of the mirrored-back mask with that of the original
  question; no truth is needed, and cases where both are empty say nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unimed.data.readers.hard_prompts import (
    HELD_OUT_NONSENSE,
    HELD_OUT_WORDINGS,
    asked_for_nonsense,
    asked_otherwise,
    mirrored,
    shows_one_image,
    single_target,
)
from unimed.evaluation.cases import sample_row
from unimed.evaluation.rows import presence_rows
from unimed.io.result import Prediction
from unimed.metrics.masks import dice
from unimed.metrics.statistics import Interval, bootstrap_mean, clopper_pearson
from unimed.structures import Region, Sample

PARAPHRASE, NONSENSE_KIND, MIRROR = "paraphrase", "nonsense", "mirror"


@dataclass(frozen=True)
class HonestySamples:
    """Further questions: `samples`, and for each (index of the sample it was made of, kind)."""

    samples: list[Sample] = field(default_factory=list)
    origins: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)


def honesty_samples(
    samples: Sequence[Sample],
    most: int = 32,
    wordings: Sequence[str] = HELD_OUT_WORDINGS,
    phrases: Sequence[str] = HELD_OUT_NONSENSE,
) -> HonestySamples:
    """Questions made of those samples that ask for one thing in one 2D image.

    Args:
        most: samples that are taken, spread over all; each gives one question per wording (where the thing is there),
            one for nonsense and one mirrored.
    """
    fitting = [i for i, sample in enumerate(samples) if shows_one_image(sample) and single_target(sample) is not None]
    if most < 1 or not fitting:
        return HonestySamples()
    chosen = [
        fitting[i] for i in np.unique(np.linspace(0, len(fitting) - 1, min(most, len(fitting))).round().astype(int))
    ]
    asked = HonestySamples()

    def add(index: int, kind: str, sample: Sample) -> None:
        asked.samples.append(sample)
        asked.origins.append((index, kind))

    for place, index in enumerate(chosen):
        sample = samples[index]
        if _there(sample) and sample.conversation:
            for wording in wordings:
                add(index, PARAPHRASE, asked_otherwise(sample, wording))
        phrase, wording = phrases[place % len(phrases)], wordings[place % len(wordings)]
        add(index, NONSENSE_KIND, asked_for_nonsense(sample, phrase, wording))
        add(index, MIRROR, mirrored(sample))
    return asked


def score_honesty(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    asked: HonestySamples,
    answers: Sequence[Prediction],
    presence: Sequence[Mapping] = (),
    *,
    resamples: int = 500,
    seed: int = 0,
) -> dict:
    """Measures of honesty with intervals that resample patients.

    Args:
        asked, answers: of `honesty_samples`, and one prediction for each of its samples.
        presence: rows of the ordinary questions (`presence_rows`); the absent ones among them are counted.

    Returns:
        {"summary": {name: number}, "tables": {"honesty": rows}, "cases": rows}.
    """
    by_kind: dict[str, list[tuple[int, Sample, Prediction]]] = {}
    for (index, kind), sample, answer in zip(asked.origins, asked.samples, answers, strict=True):
        by_kind.setdefault(kind, []).append((index, sample, answer))
    nonsense = [
        row | {"task": NONSENSE_KIND}
        for _, sample, answer in by_kind.get(NONSENSE_KIND, ())
        for row in presence_rows(sample, answer)
    ]
    wordings = _paraphrase_rows(samples, predictions, by_kind.get(PARAPHRASE, ()))
    sides = _mirror_rows(samples, predictions, by_kind.get(MIRROR, ()))
    absent = [row for row in presence if not row["present"]]
    options = {"resamples": resamples, "seed": seed}
    table = []
    for rows, columns in (
        (wordings, ("paraphrase_mean", "paraphrase_worst", "paraphrase_variance")),
        (sides, ("mirror_dice",)),
    ):
        table += [_line(column, rows, [row[column] for row in rows], **options) for column in columns if rows]
    for name, rows in (("absent", absent), (NONSENSE_KIND, nonsense)):
        if rows:
            shown = [row["predicted_voxels"] > 0 for row in rows]
            exact = clopper_pearson(sum(shown), len(rows))
            table.append(_line(f"false_mask_rate/{name}", rows, shown, **options) | {"exact": exact})
    summary = {line["measure"]: line["value"].value for line in table}
    return {"summary": summary, "tables": {"honesty": table} if table else {}, "cases": nonsense + wordings + sides}


def _line(measure: str, rows: Sequence[Mapping], values: Sequence, **options) -> dict:
    owners = [row["group"] for row in rows]
    groups = owners if len(set(owners)) > 1 else None
    value: Interval = bootstrap_mean(np.array(values, dtype=float), groups=groups, **options)
    known = [owner for owner, one in zip(owners, values, strict=True) if one is not None and not np.isnan(float(one))]
    return {"measure": measure, "value": value, "cases": len(known), "patients": len(set(known))}


def _paraphrase_rows(samples, predictions, asked) -> list[dict]:
    found: dict[int, list[float]] = {}
    for index, sample, answer in asked:
        found.setdefault(index, []).append(_target_dice(sample, answer))
    rows = []
    for index, values in found.items():
        values = [_target_dice(samples[index], predictions[index]), *values]
        measured = dict(
            paraphrase_mean=np.mean(values), paraphrase_worst=min(values), paraphrase_variance=np.var(values)
        )
        measured = {name: float(value) for name, value in measured.items()}
        rows.append(sample_row(samples[index], "consistency", single_target(samples[index]).phrase, **measured))
    return rows


def _mirror_rows(samples, predictions, asked) -> list[dict]:
    rows = []
    for index, sample, answer in asked:
        shape = sample.images[0].shape[:2]
        here, there = shown_mask(predictions[index].regions, shape), shown_mask(answer.regions, shape)[:, ::-1]
        rows.append(
            sample_row(
                samples[index], "consistency", single_target(samples[index]).phrase, mirror_dice=dice(here, there)
            )
        )
    return rows


def _target_dice(sample: Sample, prediction: Prediction) -> float:
    """Dice of all that is shown with the one thing that was asked for."""
    shape = sample.images[0].shape[:2]
    return float(dice(shown_mask(prediction.regions, shape), shown_mask(sample.regions, shape), empty="perfect"))


def shown_mask(regions: Sequence[Region], shape: Sequence[int]) -> np.ndarray:
    """The union of what regions show: their masks, or their boxes where they have none. bool [H, W]."""
    union = np.zeros(tuple(shape), dtype=bool)
    for region in regions:
        if region.mask is not None:
            union |= region.mask
        elif region.box_xyxy_px is not None:
            x1, y1, x2, y2 = (round(value) for value in region.box_xyxy_px)
            union[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = True
    return union


def _there(sample: Sample) -> bool:
    region = single_target(sample)
    return region is not None and region.mask is not None and bool(region.mask.any())

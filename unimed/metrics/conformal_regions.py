"""Conformal promises about regions: how rarely a mask is shown for what is not there, how far masks must grow.

Sources: split conformal prediction (Vovk, Gammerman and Shafer 2005; Angelopoulos and Bates, arXiv 2107.07511),
patients as clusters as in Lee, Barber and Willett (arXiv 2306.06342), class-conditional promises (Mondrian) by the
largest of the thresholds, mask margins as in arXiv 2503.05618.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import distance_transform_edt

from unimed.metrics.conformal import conformal_quantile
from unimed.metrics.statistics import Interval, bootstrap_mean, clopper_pearson

#: Fraction of the true pixels that a grown mask is to hold.
COVERED = 0.95


@dataclass(frozen=True)
class ConformalPresence:
    """The presence from which on a mask may be shown, so that false masks are rare.

    With s_1..s_n the presence that a model gave to n prompts for things that are *not* there, and q the
    ceil((n + 1)(1 - alpha))-th smallest of them, a new absent prompt has s > q with probability at most alpha where it
    is exchangeable with the n. A mask is shown only where s > q, so the rate of false masks is at most alpha. With
    several prompts of a patient every patient weighs the same (`conformal_quantile`) and the promise is about a prompt
    of a new patient. Kinds of prompts (absent, nonsense) each get a quantile, and the largest is taken, so that the
    promise holds within each kind.

    Attributes:
        alpha: bound of the false-mask rate.
        threshold: masks are shown from this presence on; above 1 none ever is.
        prompts, patients: how many it was learned from, by kind.
    """

    alpha: float
    threshold: float
    prompts: dict[str, int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        presence: Sequence[float],
        alpha: float = 0.1,
        groups: Sequence | None = None,
        kinds: Sequence[str] | None = None,
    ) -> ConformalPresence:
        """Learn the threshold from prompts for things that are not there.

        Args:
            presence: what the model said, [N] in [0, 1]; 0 where it pointed at nothing.
            groups: patient per prompt. kinds: kind per prompt.

        Raises:
            ValueError: no prompt, lengths that differ, presence outside [0, 1], or too few patients of a kind.
        """
        presence = np.asarray(presence, dtype=np.float64)
        if not len(presence) or not ((presence >= 0) & (presence <= 1)).all():
            raise ValueError(
                "a presence threshold needs the presence in [0, 1] of prompts for things that are not there"
            )
        kinds = ["absent"] * len(presence) if kinds is None else [str(kind) for kind in kinds]
        groups = [str(i) for i in range(len(presence))] if groups is None else [str(group) for group in groups]
        if not len(presence) == len(groups) == len(kinds):
            raise ValueError(f"{len(presence)} prompts, {len(groups)} groups and {len(kinds)} kinds do not fit")
        threshold, prompts, patients = 0.0, {}, {}
        for kind in sorted(set(kinds)):
            rows = [i for i, own in enumerate(kinds) if own == kind]
            part = [groups[i] for i in rows]
            prompts[kind], patients[kind] = len(rows), len(set(part))
            quantile = conformal_quantile(presence[rows], alpha, part)
            if not math.isfinite(quantile):
                raise ValueError(
                    f"{patients[kind]} patients with prompts of kind {kind!r} are too few for a false-mask rate of at "
                    f"most {alpha:g}: at least {math.ceil(1 / alpha - 1)} are needed"
                )
            threshold = max(threshold, float(np.nextafter(quantile, np.inf)))
        return cls(alpha, threshold, prompts, patients)

    def rates(
        self,
        presence: Sequence[float],
        present: Sequence[bool],
        groups: Sequence,
        kinds: Sequence[str],
        drawn: Sequence[bool] | None = None,
        *,
        usual: float = 0.5,
        resamples: int = 500,
        seed: int = 0,
    ) -> list[dict]:
        """Measured on prompts that it was not learned from: a row per kind of absent prompt and one for present ones.

        Columns: prompts, patients, and the rate of masks at the `usual` threshold and at the conformal one, each with
        an interval that resamples patients; `exact` is the Clopper-Pearson interval of the conformal rate over
        prompts. For what is present the rates are of masks that are missing.

        Args:
            drawn: whether the model had any pixel to show, [N]; by default it always had.
        """
        presence, present = np.asarray(presence, dtype=np.float64), np.asarray(present, dtype=bool)
        drawn = np.ones(len(presence), dtype=bool) if drawn is None else np.asarray(drawn, dtype=bool)
        names = np.array([str(kind) for kind in kinds])
        table = []
        for kind in [*sorted(set(names[~present])), *(["present"] if present.any() else [])]:
            rows = np.flatnonzero(present if kind == "present" else ~present & (names == kind))
            owners = [groups[int(i)] for i in rows]
            line: dict = {"prompts": kind, "rate_of": "missed masks" if kind == "present" else "false masks"}
            line |= {"cases": len(rows), "patients": len(set(owners))}
            for column, threshold in (("usual", usual), ("conformal", self.threshold)):
                shown = (presence[rows] >= threshold) & drawn[rows]
                wrong = ~shown if kind == "present" else shown
                line[column] = bootstrap_mean(wrong, groups=owners, resamples=resamples, seed=seed)
            line["exact"] = clopper_pearson(int(wrong.sum()), len(rows))
            table.append(line)
        return table


def cover_distance(prediction: np.ndarray, truth: np.ndarray, covered: float = COVERED) -> float | None:
    """By how many pixels a mask must grow to hold the fraction `covered` of the truth; 0 where it does already.

    None where either mask is empty: nothing grows out of nothing, and nothing is covered.
    """
    prediction, truth = np.asarray(prediction, dtype=bool), np.asarray(truth, dtype=bool)
    if not prediction.any() or not truth.any():
        return None
    away = np.sort(distance_transform_edt(~prediction)[truth])
    return float(away[max(0, math.ceil(covered * away.size) - 1)])


def grown(mask: np.ndarray, margin_px: float) -> np.ndarray:
    """The mask with every pixel that is at most `margin_px` away from it; an empty mask stays empty."""
    mask = np.asarray(mask, dtype=bool)
    return mask if not mask.any() or margin_px <= 0 else distance_transform_edt(~mask) <= margin_px


@dataclass(frozen=True)
class ConformalMasks:
    """A margin in pixels: masks that are shown and grown by it hold `covered` of the truth with probability 1 - alpha.

    The score of a mask is `cover_distance`, and the margin its conformal quantile over patients; the promise is about
    masks that are shown at all for things that are there.
    """

    alpha: float
    margin_px: float
    covered: float = COVERED
    masks: int = 0
    patients: int = 0

    @classmethod
    def fit(cls, distances: Sequence[float], alpha: float = 0.1, groups: Sequence | None = None) -> ConformalMasks:
        """Learn the margin from `cover_distance` of calibration masks, [N].

        Raises:
            ValueError: too few patients for a finite margin.
        """
        owners = [str(i) for i in range(len(distances))] if groups is None else [str(group) for group in groups]
        margin = conformal_quantile(distances, alpha, owners)
        if not math.isfinite(margin):
            raise ValueError(
                f"{len(set(owners))} patients with masks are too few for {1 - alpha:.0%} coverage: at least "
                f"{math.ceil(1 / alpha - 1)} are needed"
            )
        return cls(alpha, margin, COVERED, len(owners), len(set(owners)))

    def coverage(self, distances: Sequence[float], groups: Sequence, **options) -> Interval:
        """Fraction of masks that hold enough of the truth once grown, with an interval that resamples patients."""
        return bootstrap_mean(np.asarray(distances, dtype=np.float64) <= self.margin_px, groups=groups, **options)

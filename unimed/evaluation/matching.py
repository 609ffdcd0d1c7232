"""Matching of predicted and true regions: an optimal assignment over name and location, used by every scorer.

Names come first, the place decides among regions of like name. A region left over on either side has no partner, and
the scorers count it: a missing, an additional and an exchanged region each cost, the order of an answer does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimed.metrics.boxes import iou_matrix
from unimed.metrics.masks import dice
from unimed.metrics.matching import assign
from unimed.metrics.text import exact_match, normal_form, token_f1
from unimed.structures import Region

#: Phrases that share this much of their words (token F1) may mean the same finding.
SAME_PHRASE = 0.5
#: Words that turn a phrase into another finding.
OPPOSITES = (
    ("left", "right"), ("upper", "lower"), ("superior", "inferior"), ("anterior", "posterior"), ("medial", "lateral"),
    ("proximal", "distal"), ("mild", "severe"), ("increased", "decreased"), ("enlarged", "small"), ("acute", "chronic"),
    ("benign", "malignant"), ("with", "without"), ("+", "-"), ("<", ">"), ("≤", "≥"), ("↑", "↓"),
)  # fmt: skip
#: Names that name nothing: the answer points without saying at what.
_UNNAMED = frozenset("it this that these those here there region area mask object one them".split())
_UNNAMED_LIKENESS = 0.1


@dataclass(frozen=True)
class Pair:
    """A true region and what was predicted for it; None on the side that has no partner.

    `name` is the likeness of the names in [0, 1] (1: the same), `place` the Dice or IoU of the places in [0, 1].
    """

    true: Region | None
    predicted: Region | None
    name: float = 0.0
    place: float = 0.0


def name_likeness(predicted: str, true: str, question: str = "") -> float:
    """How far two phrases name the same thing, in [0, 1].

    1 for equal words, else their token F1 where it is at least `SAME_PHRASE`, or where one phrase holds all words of
    the other; 0 where they differ by opposites ("left", "right"). A phrase that names nothing ("it") or only repeats
    the question fits anything a little, so that its place decides.
    """
    if exact_match(predicted, true):
        return 1.0
    words = set(normal_form(predicted).split())
    if not words or words <= _UNNAMED:
        return _UNNAMED_LIKENESS
    others = set(normal_form(true).split())
    contrary = any(
        (a in words and b in others and b not in words) or (b in words and a in others and a not in words)
        for a, b in OPPOSITES
    )
    if not contrary:
        shared = token_f1(predicted, true)
        if shared >= SAME_PHRASE or (others and (others <= words or words <= others)):
            return min(shared, 0.99)
    repeats = question and normal_form(predicted) in normal_form(question)
    return _UNNAMED_LIKENESS if repeats and not others <= set(normal_form(question).split()) else 0.0


def place_likeness(predicted: Region, true: Region) -> float:
    """Dice of the masks where both have one, else IoU of the boxes, else 0."""
    if predicted.mask is not None and true.mask is not None and predicted.mask.shape == true.mask.shape:
        return float(np.nan_to_num(dice(predicted.mask, true.mask)))
    if predicted.box_xyxy_px is not None and true.box_xyxy_px is not None:
        return float(iou_matrix([predicted.box_xyxy_px], [true.box_xyxy_px])[0, 0])
    return 0.0


def match_regions(true: Sequence[Region], predicted: Sequence[Region], question: str = "") -> list[Pair]:
    """Pairs for every true region, in their order, then one for every predicted region that is left over.

    Args:
        question: what was asked; a phrase that merely repeats it names nothing of its own.
    """
    names = np.array([[name_likeness(p.phrase, t.phrase, question) for t in true] for p in predicted])
    names = names.reshape(len(predicted), len(true))
    places = np.array([[place_likeness(p, t) if names[i, j] else 0.0 for j, t in enumerate(true)]
                       for i, p in enumerate(predicted)]).reshape(names.shape)  # fmt: skip
    partner = {j: i for i, j, _ in assign(names, places, most_pairs=False)}
    pairs = [
        Pair(region, predicted[partner[j]], float(names[partner[j], j]), float(places[partner[j], j]))
        if j in partner
        else Pair(region, None)
        for j, region in enumerate(true)
    ]
    taken = set(partner.values())
    return pairs + [Pair(None, region) for i, region in enumerate(predicted) if i not in taken]


def match_phrases(
    true: Sequence[Region], predicted: Sequence[Region], question: str = ""
) -> tuple[list[tuple[str, list[Region], list[Region]]], list[Region]]:
    """For every phrase of the truth its regions and those predicted for it; and the predicted regions of no phrase.

    A phrase may have none, one or many regions on either side. A predicted region belongs to the phrase it names best;
    of phrases it names equally well, to the one it lies on.
    """
    phrases: dict[str, list[Region]] = {}
    for region in true:
        phrases.setdefault(normal_form(region.phrase), []).append(region)
    found: dict[str, list[Region]] = {key: [] for key in phrases}
    left = []
    for region in predicted:
        likeness = {
            key: (
                name_likeness(region.phrase, regions[0].phrase, question),
                max(place_likeness(region, other) for other in regions),
            )
            for key, regions in phrases.items()
        }
        best = max(likeness, key=likeness.__getitem__, default=None)
        if best is None or likeness[best][0] == 0:
            left.append(region)
        else:
            found[best].append(region)
    return [(regions[0].phrase, regions, found[key]) for key, regions in phrases.items()], left


def charged_to(region: Region, true: Sequence[Region]) -> str:
    """The target an additional region is counted for: the true phrase most like its own, else the first one."""
    if not true:
        return region.phrase
    return max(true, key=lambda other: (name_likeness(region.phrase, other.phrase), other is true[0])).phrase


def matched_dice(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float:
    """Dice of nameless masks: the best pairs over max(predicted, true), so that a missing and an additional mask cost.

    Empty masks are left out; nothing shown where nothing is scores 1.
    """
    predicted, true = [m for m in predicted if m.any()], [m for m in true if m.any()]
    if not predicted and not true:
        return 1.0
    table = np.array([[dice(p, t) for t in true] for p in predicted]).reshape(len(predicted), len(true))
    return float(sum(value for _, _, value in assign(table, most_pairs=False)) / max(len(predicted), len(true)))

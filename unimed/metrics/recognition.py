"""Recognition after segmentation: the K-S test of BiomedParse v1 for presence, and which of many masks to keep.

The published p-values and the rules for overlapping masks follow BiomedParse v1; parameters of the known targets come
with its checkpoint and are passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy  # its parts are read when they are used: statistics alone take most of a second


def mask_statistics(
    probability: np.ndarray, image_rgb: np.ndarray, *, compat: str | None = None
) -> tuple[float, float, float, float]:
    """Mean mask intensity and mean R, G, B under a mask, each divided by 256.

    Args:
        probability: HxW in [0, 1]. image_rgb: HxWx3 in 0..255, same height and width.
        compat: None: zeros where no pixel reaches 128 of 255. "reference": NaN where the highest pixel lies between
            127 and 128, as published.
    """
    probability, image = np.asarray(probability, dtype=np.float64), np.asarray(image_rgb)
    if probability.ndim != 2 or image.shape != (*probability.shape, 3):
        raise ValueError(f"probability HxW and image HxWx3 are needed, got {probability.shape} and {image.shape}")
    level = probability * 255
    inside = level >= 128
    if not inside.any():
        value = float("nan") if compat == "reference" and level.max() > 127 else 0.0
        return value, value, value, value
    red, green, blue = (float(v) for v in image[inside].mean(0) / 256)
    return float(level[inside].mean() / 256), red, green, blue


def presence_p_value(
    statistics: Sequence[float], distributions: Sequence[Sequence[float]], *, compat: str | None = None
) -> float:
    """How usual the statistics of a mask are for a target: geometric mean of four one-sample K-S p-values.

    With one observation the two-sided K-S p-value is 2 min(F, 1 - F). The usual reading is "not this object" below
    0.05. On grey images the same intensity enters three times; the number is a score, not a probability.

    Args:
        statistics: four numbers of `mask_statistics`. distributions: four (a, b) of beta distributions of the target.
        compat: None: the upper tail by the survival function. "reference": one less the larger
            tail, as published, which loses its digits in both tails (up to 3e-5 in the result).
    """
    x, parameters = np.asarray(statistics, dtype=np.float64), np.asarray(distributions, dtype=np.float64)
    if x.shape != (4,) or parameters.shape != (4, 2):
        raise ValueError(f"four statistics and four (a, b) are needed, got {x.shape} and {parameters.shape}")
    below = scipy.stats.beta.cdf(x, parameters[:, 0], parameters[:, 1])
    if compat == "reference":
        each = 2 * (1 - np.maximum(below, 1 - below))
    else:
        each = 2 * np.minimum(below, scipy.stats.beta.sf(x, parameters[:, 0], parameters[:, 1]))
    return float(np.prod(each) ** 0.25)


def suppress_covered(
    probabilities: Mapping[str, np.ndarray], scores: Mapping[str, float], *, covered: float = 0.5
) -> list[str]:
    """Names to keep, best score first: empty masks go, and masks of which a kept one covers more than `covered`."""
    kept: list[str] = []
    masks = {name: np.asarray(probability) > 0.5 for name, probability in probabilities.items()}
    for name in sorted(masks, key=lambda name: -scores[name]):
        size = masks[name].sum()
        if size and all((masks[name] & masks[other]).sum() <= covered * size for other in kept):
            kept.append(name)
    return kept


def combine_masks(probabilities: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Share out pixels among targets: each goes to the most probable one, above 0.5.

    A target that wins less than half of the pixels where it exceeds 0.1 is dropped, unless its mean probability is
    the highest of all. Returns bool masks of the targets that stay, in the given order; no two overlap.
    """
    names = list(probabilities)
    if not names:
        return {}
    maps = np.stack([np.asarray(probabilities[name], dtype=np.float64) for name in names])
    candidate = maps > 0.1
    winner = np.where(candidate.any(0), np.where(candidate, maps, -1).argmax(0), -1)
    strongest = int(maps.reshape(len(names), -1).mean(1).argmax())
    kept = [
        k for k in range(len(names)) if k == strongest or (winner == k).sum() >= 0.5 * max(1, int(candidate[k].sum()))
    ]
    left = maps[kept]
    best = left.argmax(0)
    return {names[k]: (best == place) & (left[place] > 0.5) for place, k in enumerate(kept)}

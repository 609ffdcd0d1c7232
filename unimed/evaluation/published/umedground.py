"""Box and phrase metrics as published with uMedGround.

Its tables call the fractions of samples with IoU >= 0.5, 0.3 and 0.1 "AP50", "AP30" and "AP10"; there is no ranking
and no average precision. Our names for the same numbers are `acc_at_50`, `acc_at_30`, `acc_at_10`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.boxes import accuracy_at

ALIASES = {"AP10": "acc_at_10", "AP30": "acc_at_30", "AP50": "acc_at_50", "mIoU": "miou"}


def sample_ious(predicted_cxcywh, truth_cxcywh, size: float = 640.0) -> np.ndarray:
    """IoU per sample [N] of boxes [N, 4] given as centre and sides in fractions of the image.

    Differs from `boxes.paired_iou`: only predictions are clipped to the image, true boxes are not; the union carries
    1e-16. `size` 1 scores in unit coordinates.
    """
    predicted = np.clip(_corners(predicted_cxcywh) * size, 0, size)
    truth = _corners(truth_cxcywh) * size
    sides = np.minimum(predicted[:, 2:], truth[:, 2:]) - np.maximum(predicted[:, :2], truth[:, :2])
    intersection = np.clip(sides, 0, None).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (predicted, truth)]
    return intersection / (areas[0] + areas[1] - intersection + 1e-16)


def grounding_table(predicted_cxcywh, truth_cxcywh, size: float = 640.0) -> dict[str, float]:
    """mIoU, AP50, AP30 and AP10 under their published names, over the first box of every sample."""
    scores = accuracy_at(sample_ious(predicted_cxcywh, truth_cxcywh, size))
    return {alias: scores[name] for alias, name in ALIASES.items()}


def per_category(values: Sequence[float], categories: Sequence[int], count: int) -> np.ndarray:
    """Mean value per category 1..count, [count]; NaN where a category has no sample."""
    values, categories = np.asarray(values, dtype=np.float64), np.asarray(categories)
    return np.array(
        [values[categories == c].mean() if (categories == c).any() else np.nan for c in range(1, count + 1)]
    )


def spoken_phrase(decoded: str, marker: str = "ASSISTANT: ", ending: str = "It is [BOX].") -> str:
    """The phrase as it was scored: what follows the marker up to </s>, without the one answer ending it knows.

    The other endings and all full stops stay and cost score; so does the trailing space.
    """
    return answer_text(decoded, marker).replace(ending, " ")


def _corners(boxes):
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def answer_text(decoded: str, marker: str = "ASSISTANT: ") -> str:
    """The answer as it was logged: after the marker, up to </s>, double spaces made single once."""
    return decoded.split(marker)[-1].split("</s>")[0].replace("\n", "").replace("  ", " ").strip(" ")

"""Presence detection: is an object there at all; presence scores and masks predicted for absent objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.classification import auroc


def presence_scores(
    probability: Sequence[float],
    present: Sequence[bool],
    predicted_voxels: Sequence[int] | None = None,
    *,
    threshold: float = 0.5,
    painted_voxels: Sequence[int] | None = None,
) -> dict[str, float]:
    """Presence as a detection problem, and masks predicted where nothing is.

    Args:
        probability: presence in [0, 1] of every asked object, [N].
        present: whether it is there, [N].
        predicted_voxels: size of the mask that the user was shown, [N]; enables the mask rates.
        threshold: predicted to be there from this probability on.
        painted_voxels: former name of `predicted_voxels`.

    Returns:
        presence_auroc, presence_accuracy, sensitivity, specificity (NaN where a class is missing), `absent` and
        `present` counts; with predicted_voxels also `false_mask_rate` (absent objects with a mask that is not empty)
        and `missed_mask_rate` (present ones without any).

    Raises:
        ValueError: lengths differ or a probability is outside [0, 1].
    """
    probability, present = np.asarray(probability, dtype=np.float64), np.asarray(present, dtype=bool)
    if probability.shape != present.shape or probability.ndim != 1:
        raise ValueError(f"probability {probability.shape} and present {present.shape} must be equally long lists")
    if probability.size and not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("presence probabilities must lie in [0, 1]; apply a sigmoid to logits first")
    predicted_voxels = painted_voxels if predicted_voxels is None else predicted_voxels
    found = probability >= threshold
    result = {
        "presence_auroc": auroc(probability, present),
        "presence_accuracy": _fraction(found == present),
        "presence_sensitivity": _fraction(found[present]),
        "presence_specificity": _fraction(~found[~present]),
        "present": int(present.sum()),
        "absent": int((~present).sum()),
    }
    if predicted_voxels is not None:
        shown = np.asarray(predicted_voxels) > 0
        if shown.shape != present.shape:
            raise ValueError(f"predicted_voxels {shown.shape} must be as long as present {present.shape}")
        result["false_mask_rate"] = _fraction(shown[~present])
        result["missed_mask_rate"] = _fraction(~shown[present])
    return result


def _fraction(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else float("nan")

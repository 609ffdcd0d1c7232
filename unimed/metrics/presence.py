"""Does the model know that a thing is not there: presence scores and masks painted on absent objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimed.metrics.classification import auroc


def presence_scores(
    probability: Sequence[float],
    present: Sequence[bool],
    painted_voxels: Sequence[int] | None = None,
    *,
    threshold: float = 0.5,
) -> dict[str, float]:
    """Presence as a detection problem, and what was painted where nothing is.

    Args:
        probability: presence in [0, 1] of every asked object, [N].
        present: whether it is there, [N].
        painted_voxels: size of the mask that the user was shown, [N]; enables the mask rates.
        threshold: said to be there from this probability on.

    Returns:
        presence_auroc, presence_accuracy, sensitivity, specificity (NaN where a class is missing), `absent` and
        `present` counts; with painted_voxels also `false_mask_rate` (absent objects with a mask that is not empty)
        and `missed_mask_rate` (present ones without any).

    Raises:
        ValueError: lengths differ or a probability is outside [0, 1].
    """
    probability, present = np.asarray(probability, dtype=np.float64), np.asarray(present, dtype=bool)
    if probability.shape != present.shape or probability.ndim != 1:
        raise ValueError(f"probability {probability.shape} and present {present.shape} must be equally long lists")
    if probability.size and not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("presence probabilities must lie in [0, 1]; apply a sigmoid to logits first")
    said = probability >= threshold
    result = {
        "presence_auroc": auroc(probability, present),
        "presence_accuracy": _share(said == present),
        "presence_sensitivity": _share(said[present]),
        "presence_specificity": _share(~said[~present]),
        "present": int(present.sum()),
        "absent": int((~present).sum()),
    }
    if painted_voxels is not None:
        painted = np.asarray(painted_voxels) > 0
        if painted.shape != present.shape:
            raise ValueError(f"painted_voxels {painted.shape} must be as long as present {present.shape}")
        result["false_mask_rate"] = _share(painted[~present])
        result["missed_mask_rate"] = _share(~painted[present])
    return result


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else float("nan")

"""The loss of boxes: that of the registered kind of their head (`unimed.registry.HEADS`).

All are means over boxes, so the weight of the boxes does not grow with their number, and every box is trained. Targets
of a phrase with several boxes are put in the order of the predictions first (`unimed.losses.matching`). The formulas of
uMedGround's released code, which sums over images and trains the first box only, are in `unimed.losses.box_published`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from unimed.models.heads.box import BoxPrediction
from unimed.models.heads.box_heads import loss_of
from unimed.models.heads.box_losses import mixture_nll, nig_nll, nig_regularizer
from unimed.registry import did_you_mean, today

#: Numbers of the losses; `box_loss(..., options=...)` changes them.
OPTIONS = {
    "main_weight": 0.95,  # mhp: of the first hypothesis, the others share the rest (published)
    "margin": 0.01,  # uncertain: hypotheses closer than this, in fractions of the frame, are pushed apart (published)
    "epsilon": 0.05,  # rwta: weight of all hypotheses that are not the best
    "evidence": 0.01,  # evidential: weight of the regulariser
    "extra": 1.0,  # weight of the second, uncertain term of a kind (published: uncertain_box_loss_weight)
}
RENAMED = {"main_share": "main_weight"}


def box_loss(
    prediction: BoxPrediction, target_xyxy: torch.Tensor, options: Mapping | None = None
) -> dict[str, torch.Tensor]:
    """Named terms whose sum is the loss of N boxes.

    Kinds of ours have "l1" (mean distance of the corners) and "giou" (1 - generalised IoU), over the answer or over
    weighted hypotheses, and further terms that `unimed.models.heads.box_losses` describes.

    Args:
        prediction: `BoxPrediction` of N boxes.
        target_xyxy: [N, 4] corners as fractions of the same frame.
        options: changes to `OPTIONS`.

    Raises:
        ValueError: another number of boxes than predictions, a target without area or not finite, an unknown option.
    """
    loss, own = loss_of(prediction.kind)
    defaults = {**OPTIONS, **own}
    options = today(options or {}, RENAMED, "box_options")
    if unknown := sorted(set(options) - set(defaults)):
        raise ValueError(
            f"unknown options {unknown} of the box loss{did_you_mean(unknown[0], defaults)} "
            f"known are {', '.join(defaults)}"
        )
    _check(prediction, target_xyxy)
    if not len(target_xyxy):
        zero = prediction.boxes_cxcywh.sum() * 0.0
        return {"l1": zero, "giou": zero}
    return loss(prediction, target_xyxy.float(), defaults | options)


def _check(prediction, target: torch.Tensor) -> None:
    if len(prediction.boxes_cxcywh) != len(target):
        raise ValueError(f"{len(prediction.boxes_cxcywh)} predicted boxes for {len(target)} targets")
    if not bool(torch.isfinite(target).all()):
        raise ValueError("a target box holds NaN or Inf")
    if bool((target[:, 2:] <= target[:, :2]).any()):
        raise ValueError("a target box has no area")


__all__ = ["OPTIONS", "box_loss", "mixture_nll", "nig_nll", "nig_regularizer"]

"""Box losses of uMedGround's released code (compat="reference"), for comparison and for continuing old runs.

Differences from `unimed.losses.box`: one image at a time, only its first box is trained, losses are summed over images,
distances are sums over centre and size, and the weights of `umhp` let gradients through. A phrase without a box is
refused here; the released code divides by zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unimed.models.heads.box_coordinates import cxcywh_to_xyxy, paired_giou

MAIN, REST, MARGIN = 0.95, 0.025, 0.01


def first_box_loss(predicted_cxcywh: torch.Tensor, target_cxcywh: torch.Tensor) -> dict[str, torch.Tensor]:
    """ "l1" and "giou" of the first box of one image; [N, 4] and [M, 4] padded with zero rows.

    Raises:
        ValueError: no prediction, or the first target is padding.
    """
    if not len(predicted_cxcywh) or not bool(target_cxcywh[0].any()):
        raise ValueError("the published box loss needs a first prediction and a first box that is not padding")
    predicted, target = predicted_cxcywh[0], target_cxcywh[0]
    giou = paired_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    return {"l1": (predicted - target).abs().sum(), "giou": 1 - giou}


def all_boxes_loss(predicted_cxcywh: torch.Tensor, target_cxcywh: torch.Tensor, l1: float = 1.0):
    """ "l1" and "giou" of N pairs of boxes, means over boxes: the loss of TransVG (and with `l1` 0.01 of the unused
    evidential branch)."""
    giou = paired_giou(cxcywh_to_xyxy(predicted_cxcywh), cxcywh_to_xyxy(target_cxcywh))
    distance = (predicted_cxcywh - target_cxcywh).abs().sum() / len(predicted_cxcywh)
    return {"l1": l1 * distance, "giou": (1 - giou).mean()}


def diversity(hypotheses: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hinge that keeps three predictions [N, 4] apart: mean over elements per pair, pairs summed, divided by N."""
    first, second, third = hypotheses
    pairs = ((first, second), (first, third), (second, third))
    return sum((MARGIN - (a - b).abs()).clamp(min=0).mean() for a, b in pairs) / len(first)


def image_losses(
    kind: str, hypotheses: Sequence[torch.Tensor], target_cxcywh: torch.Tensor, language: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Unweighted terms of one image: "box", "extra" where the kind has it, "language" where that head is given.

    Args:
        kind: "point", "uncertain", "mhp" or "umhp".
        hypotheses: three predictions [n, 4] (centre and size), n the number of [BOX] tokens.
        target_cxcywh: [M, 4], rows of zeros are padding.
        language: [n, 4], raw output of the head on the language state ("llava head").
    """

    def loss(boxes):
        return sum(first_box_loss(boxes, target_cxcywh).values())

    losses = {}
    if kind == "point":
        losses["box"] = loss(hypotheses[0])
    elif kind == "uncertain":
        # Over all phrases of the picture, as published.
        losses["box"] = loss(torch.cat(list(hypotheses)).mean(dim=0, keepdim=True))
        losses["extra"] = diversity(hypotheses)
    elif kind == "mhp":
        losses["box"] = MAIN * loss(hypotheses[0])
        losses["extra"] = REST * (loss(hypotheses[1]) + loss(hypotheses[2]))
    elif kind == "umhp":
        errors = torch.stack([(boxes[0] - target_cxcywh[0]).abs().norm() for boxes in hypotheses])
        weights = errors / errors.sum()
        losses["box"] = weights[0] * loss(hypotheses[0])
        losses["extra"] = weights[1] * loss(hypotheses[1]) + weights[2] * loss(hypotheses[2])
    else:
        raise ValueError(f"the published code has no kind {kind!r}; known are point, uncertain, mhp, umhp")
    if language is not None:
        losses["language"] = loss(language)
    return losses


def batch_total(
    text_loss: torch.Tensor, images: Sequence[dict], text: float = 1.0, box: float = 1.0, extra: float = 1.0
) -> torch.Tensor:
    """Published total: weighted text loss plus the box terms summed over images ("language" weighs as "box")."""
    weights = {"box": box, "extra": extra, "language": box}
    return text * text_loss + sum(weights[name] * value for image in images for name, value in image.items())


def mixed_statistics(hypotheses: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean box and variance as published: over the hypotheses of ALL phrases of a picture, so that several phrases give
    one meaningless box. `hypotheses` are three [n, 4]; "mean" and "variance" are [1, 4], "variance_with_mean" [4]."""
    stacked = torch.cat(list(hypotheses))
    mean = stacked.mean(dim=0, keepdim=True)
    return {
        "boxes": stacked,
        "mean": mean,
        "variance": stacked.var(dim=0, keepdim=True),
        "variance_with_mean": torch.cat([stacked, mean]).var(dim=0),
    }

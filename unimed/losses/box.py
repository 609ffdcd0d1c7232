"""Losses of box heads, one per kind of head.

All are means over boxes, so the weight of the boxes does not grow with their number, and every box is trained. Targets
of a phrase with several boxes are put in the order of the predictions first (`unimed.losses.matching`). The formulas of
uMedGround's released code, which sums over images and trains the first box only, are in `unimed.losses.box_published`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from unimed.models.heads.box_coordinates import cxcywh_to_xyxy, paired_giou, xyxy_to_cxcywh

#: Numbers of the losses; `box_loss(..., options=...)` changes them.
OPTIONS = {
    "main_share": 0.95,  # mhp: weight of the first hypothesis, the others share the rest (published)
    "margin": 0.01,  # uncertain: hypotheses closer than this, in shares of the frame, are pushed apart (published)
    "epsilon": 0.05,  # rwta: share of the hypotheses that are not the best
    "evidence": 0.01,  # evidential: weight of the regulariser
    "extra": 1.0,  # weight of the second, uncertain term of a kind (published: uncertain_box_loss_weight)
}


def box_loss(prediction, target_xyxy: torch.Tensor, options: Mapping | None = None) -> dict[str, torch.Tensor]:
    """Named terms whose sum is the loss of N boxes.

    Every kind has "l1" (mean distance of the corners) and "giou" (1 - generalised IoU), over the answer or over
    weighted hypotheses:

    - point, draws: the answer.
    - laplace: the answer, and "nll" teaches the scale alone.
    - mhp: first hypothesis `main_share`, the others the rest.
    - umhp: hypotheses weighted by their own error (as published; the weights are constants here).
    - uncertain: the mean, and "spread", a hinge that keeps hypotheses `margin` apart.
    - rwta: best hypothesis 1 - `epsilon`, the others the rest, and "choice" teaches the weights to name the best.
    - laplace_mixture: the mean, and "nll" of the mixture.
    - evidential: the mean, and "nll" and "evidence" of the normal-inverse-gamma law.

    Args:
        prediction: `BoxPrediction` of N boxes.
        target_xyxy: [N, 4] corners as shares of the same frame.
        options: changes to `OPTIONS`.

    Raises:
        ValueError: another number of boxes than predictions, a target without area or not finite, an unknown option.
    """
    if unknown := set(options or {}) - set(OPTIONS):
        raise ValueError(f"unknown options {sorted(unknown)} of the box loss; known are {', '.join(OPTIONS)}")
    chosen = OPTIONS | dict(options or {})
    _check(prediction, target_xyxy)
    if not len(target_xyxy):
        zero = prediction.boxes_cxcywh.sum() * 0.0
        return {"l1": zero, "giou": zero}
    return _LOSSES[prediction.kind](prediction, target_xyxy.float(), chosen)


def _check(prediction, target: torch.Tensor) -> None:
    if len(prediction.boxes_cxcywh) != len(target):
        raise ValueError(f"{len(prediction.boxes_cxcywh)} predicted boxes for {len(target)} targets")
    if not bool(torch.isfinite(target).all()):
        raise ValueError("a target box holds NaN or Inf")
    if bool((target[:, 2:] <= target[:, :2]).any()):
        raise ValueError("a target box has no area")


def _parts(boxes_cxcywh: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of corners (mean of four) and 1 - GIoU, each of the shape without the last axis."""
    corners = cxcywh_to_xyxy(boxes_cxcywh)
    return (corners - target).abs().mean(dim=-1), 1 - paired_giou(corners, target)


def _answer(prediction, target) -> dict[str, torch.Tensor]:
    l1, giou = _parts(prediction.boxes_cxcywh, target)
    return {"l1": l1.mean(), "giou": giou.mean()}


def _weighted(prediction, target, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Hypotheses [N, K, 4] with weights [N, K] or [K]."""
    l1, giou = _parts(prediction.hypotheses, target[:, None])
    return {"l1": (weights * l1).sum(dim=1).mean(), "giou": (weights * giou).sum(dim=1).mean()}


def _point(prediction, target, options):
    return _answer(prediction, target)


def _laplace(prediction, target, options):
    # The box itself is taught by the two terms above; the likelihood teaches the spread.
    distance = (cxcywh_to_xyxy(prediction.boxes_cxcywh) - target).abs().detach()
    scale = prediction.log_scale
    nll = (distance * torch.exp(-scale) + scale).mean()
    return _answer(prediction, target) | {"nll": options["extra"] * nll}


def _mhp(prediction, target, options):
    count = prediction.hypotheses.shape[1]
    weights = target.new_full((count,), options["extra"] * (1 - options["main_share"]) / (count - 1))
    weights[0] = options["main_share"]
    return _weighted(prediction, target, weights)


def _umhp(prediction, target, options):
    error = (prediction.hypotheses - xyxy_to_cxcywh(target)[:, None]).detach().norm(dim=-1)  # [N, K]
    weights = error / error.sum(dim=1, keepdim=True).clamp(min=1e-9)
    scale = weights.new_full((weights.shape[1],), options["extra"])
    scale[0] = 1.0
    return _weighted(prediction, target, scale * weights)


def _uncertain(prediction, target, options):
    pairs = torch.combinations(torch.arange(prediction.hypotheses.shape[1], device=target.device), 2)
    apart = (prediction.hypotheses[:, pairs[:, 0]] - prediction.hypotheses[:, pairs[:, 1]]).abs()  # [N, pairs, 4]
    hinge = (options["margin"] - apart).clamp(min=0).mean(dim=(0, 2)).sum()
    return _answer(prediction, target) | {"spread": options["extra"] * hinge}


def _rwta(prediction, target, options):
    l1, giou = _parts(prediction.hypotheses, target[:, None])
    best = (l1 + giou).detach().argmin(dim=1, keepdim=True)
    count = prediction.hypotheses.shape[1]
    weights = torch.full_like(l1, options["epsilon"] / (count - 1)).scatter(1, best, 1 - options["epsilon"])
    choice = -prediction.weights.gather(1, best).clamp(min=1e-9).log().mean()
    return _weighted(prediction, target, weights) | {"choice": 0.1 * options["extra"] * choice}


def mixture_nll(hypotheses_cxcywh, weights, log_scales, target_xyxy) -> torch.Tensor:
    """[N], -log sum_k pi_k prod_c Laplace(target_c; corner_kc, s_kc); [N, K, 4], [N, K], [N, K, 4], [N, 4]."""
    distance = (cxcywh_to_xyxy(hypotheses_cxcywh) - target_xyxy[:, None]).abs()
    density = (-distance * torch.exp(-log_scales) - log_scales - math.log(2)).sum(dim=-1)  # [N, K]
    return -torch.logsumexp(weights.clamp(min=1e-9).log() + density, dim=1)


def _laplace_mixture(prediction, target, options):
    nll = mixture_nll(prediction.hypotheses, prediction.weights, prediction.log_scales, target).mean() / 4
    return _answer(prediction, target) | {"nll": options["extra"] * nll}


def nig_nll(gamma, v, alpha, beta, target) -> torch.Tensor:
    """Negative log likelihood of a normal-inverse-gamma law (Amini et al. 2020), elementwise."""
    omega = 2 * beta * (1 + v)
    return (
        0.5 * torch.log(math.pi / v)
        - alpha * torch.log(omega)
        + (alpha + 0.5) * torch.log(v * (target - gamma) ** 2 + omega)
        + torch.lgamma(alpha)
        - torch.lgamma(alpha + 0.5)
    )


def nig_regulariser(gamma, v, alpha, target) -> torch.Tensor:
    """Evidence claimed for wrong answers, elementwise (Amini et al. 2020)."""
    return (target - gamma).abs() * (2 * v + alpha)


def _evidential(prediction, target, options):
    evidence, centre_form = prediction.evidence, xyxy_to_cxcywh(target)
    nll = nig_nll(**evidence, target=centre_form).mean()
    claimed = nig_regulariser(evidence["gamma"], evidence["v"], evidence["alpha"], centre_form).mean()
    extra = options["extra"]
    extra_terms = {"nll": 0.1 * extra * nll, "evidence": extra * options["evidence"] * claimed}
    return _answer(prediction, target) | extra_terms


_LOSSES = {
    "point": _point,
    "draws": _point,
    "laplace": _laplace,
    "mhp": _mhp,
    "umhp": _umhp,
    "uncertain": _uncertain,
    "rwta": _rwta,
    "laplace_mixture": _laplace_mixture,
    "evidential": _evidential,
}

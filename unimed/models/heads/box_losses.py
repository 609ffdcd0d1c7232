"""Losses of box heads: formulas that the entries of `unimed.registry.HEADS` name; `unimed.losses.box` calls them.

A loss takes a `BoxPrediction` of N boxes, targets [N, 4] (corners as fractions of the same frame, with area) and its
options, and returns named terms whose sum is minimised. All are means over boxes, so the weight of the boxes does not
grow with their number.
"""

from __future__ import annotations

import math

import torch

from unimed.models.heads.box_coordinates import cxcywh_to_xyxy, paired_giou, xyxy_to_cxcywh

Terms = dict[str, torch.Tensor]


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


def answer_loss(prediction, target, options) -> Terms:
    """The answer alone."""
    return _answer(prediction, target)


def laplace_loss(prediction, target, options) -> Terms:
    """The answer, and "nll" trains the scale alone."""
    # The box itself is taught by the two terms above; the likelihood teaches the spread.
    distance = (cxcywh_to_xyxy(prediction.boxes_cxcywh) - target).abs().detach()
    scale = prediction.log_scale
    nll = (distance * torch.exp(-scale) + scale).mean()
    return _answer(prediction, target) | {"nll": options["extra"] * nll}


def mhp_loss(prediction, target, options) -> Terms:
    """First hypothesis `main_weight`, the others share the rest."""
    count = prediction.hypotheses.shape[1]
    weights = target.new_full((count,), options["extra"] * (1 - options["main_weight"]) / (count - 1))
    weights[0] = options["main_weight"]
    return _weighted(prediction, target, weights)


def umhp_loss(prediction, target, options) -> Terms:
    """Hypotheses weighted by their own error (as published; the weights are constants here)."""
    error = (prediction.hypotheses - xyxy_to_cxcywh(target)[:, None]).detach().norm(dim=-1)  # [N, K]
    weights = error / error.sum(dim=1, keepdim=True).clamp(min=1e-9)
    scale = weights.new_full((weights.shape[1],), options["extra"])
    scale[0] = 1.0
    return _weighted(prediction, target, scale * weights)


def repulsion_loss(prediction, target, options) -> Terms:
    """The mean, and "spread", a hinge that keeps hypotheses `margin` apart."""
    pairs = torch.combinations(torch.arange(prediction.hypotheses.shape[1], device=target.device), 2)
    apart = (prediction.hypotheses[:, pairs[:, 0]] - prediction.hypotheses[:, pairs[:, 1]]).abs()  # [N, pairs, 4]
    hinge = (options["margin"] - apart).clamp(min=0).mean(dim=(0, 2)).sum()
    return _answer(prediction, target) | {"spread": options["extra"] * hinge}


def rwta_loss(prediction, target, options) -> Terms:
    """Best hypothesis 1 - `epsilon`, the others share the rest; "choice" trains the weights to name the best."""
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


def laplace_mixture_loss(prediction, target, options) -> Terms:
    """The mean, and "nll" of the mixture."""
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


def nig_regularizer(gamma, v, alpha, target) -> torch.Tensor:
    """Evidence claimed for wrong answers, elementwise (Amini et al. 2020)."""
    return (target - gamma).abs() * (2 * v + alpha)


def evidential_loss(prediction, target, options) -> Terms:
    """The mean, and "nll" and "evidence" of the normal-inverse-gamma distribution (Amini et al. 2020)."""
    evidence, center_form = prediction.evidence, xyxy_to_cxcywh(target)
    nll = nig_nll(**evidence, target=center_form).mean()
    claimed = nig_regularizer(evidence["gamma"], evidence["v"], evidence["alpha"], center_form).mean()
    extra = options["extra"]
    extra_terms = {"nll": 0.1 * extra * nll, "evidence": extra * options["evidence"] * claimed}
    return _answer(prediction, target) | extra_terms

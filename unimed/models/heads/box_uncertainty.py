"""Box heads with trained uncertainty: weighted hypotheses, a mixture of Laplace distributions, evidential."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from unimed.models.heads.box import BoxMlp, BoxPrediction, box_head, hypothesis_states, mixture_moments, new_queries
from unimed.models.heads.box_coordinates import cxcywh_to_xyxy, std_cxcywh_to_xyxy
from unimed.models.heads.box_losses import evidential_loss, laplace_mixture_loss, rwta_loss


@box_head(
    "rwta", rwta_loss, reads_tokens=True, about="K boxes with weights, relaxed winner takes all (Rupprecht et al. 2017)"
)
class WeightedBoxHead(nn.Module):
    """K hypotheses with a weight each, for relaxed winner takes all (Rupprecht et al. 2017).

    The answer is the weighted mean. Hypotheses have learnt queries on a language state, or are the first K tokens of a
    mask decoder.

    Args:
        tokens: whether states are decoder tokens.
    """

    kind = "rwta"

    def __init__(self, hidden_dim: int, hypotheses: int = 3, tokens: bool = False):
        super().__init__()
        if hypotheses < 2:
            raise ValueError(f"hypotheses must be at least 2, got {hypotheses}")
        self.count = hypotheses
        self.queries = None if tokens else new_queries(hypotheses, hidden_dim)
        self.boxes = BoxMlp(hidden_dim)
        self.scores = nn.Linear(hidden_dim, 1)

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        """[N, D] or [N, at least K, D]."""
        tokens = hypothesis_states(states, self.count, self.queries)
        hypotheses = self.boxes.raw(tokens).sigmoid()  # [N, K, 4]
        weights = self.scores(tokens)[..., 0].float().softmax(dim=1)  # [N, K]
        mean, _ = mixture_moments(hypotheses, weights)
        _, std = mixture_moments(cxcywh_to_xyxy(hypotheses), weights)
        return BoxPrediction(mean, std, hypotheses=hypotheses, weights=weights, kind=self.kind)


@box_head(
    "laplace_mixture", laplace_mixture_loss, reads_tokens=True,
    about="K Laplace components with weights and scales, by likelihood",
)  # fmt: skip
class LaplaceMixtureBoxHead(nn.Module):
    """K Laplace components per box: weights, centres and one scale per corner coordinate, trained by likelihood.

    Mean and standard deviation are those of the whole mixture: the spread holds both the disagreement of the components
    and their own width.

    Args:
        min_scale: smallest scale as a fraction of the frame; without a floor the likelihood has no bound.
        tokens: whether states are decoder tokens.
    """

    kind = "laplace_mixture"

    def __init__(self, hidden_dim: int, hypotheses: int = 3, min_scale: float = 1e-3, tokens: bool = False):
        super().__init__()
        if hypotheses < 1:
            raise ValueError(f"hypotheses must be at least 1, got {hypotheses}")
        self.count, self.min_scale = hypotheses, min_scale
        self.queries = None if tokens else new_queries(hypotheses, hidden_dim)
        self.boxes = BoxMlp(hidden_dim)
        self.scales = BoxMlp(hidden_dim)
        self.scores = nn.Linear(hidden_dim, 1)
        # A tenth of the frame at first: wide enough that far outliers do not rule the first steps.
        nn.init.constant_(self.scales.layers[-1].bias, -2.25)

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        """[N, D] or [N, at least K, D]."""
        tokens = hypothesis_states(states, self.count, self.queries)
        hypotheses = self.boxes.raw(tokens).sigmoid()  # [N, K, 4]
        scales = F.softplus(self.scales.raw(tokens)) + self.min_scale  # [N, K, 4]
        weights = self.scores(tokens)[..., 0].float().softmax(dim=1)
        mean, _ = mixture_moments(hypotheses, weights)
        _, std = mixture_moments(cxcywh_to_xyxy(hypotheses), weights, within=2**0.5 * scales)
        return BoxPrediction(mean, std, hypotheses=hypotheses, weights=weights, log_scales=scales.log(), kind=self.kind)


@box_head(
    "evidential", evidential_loss,
    about="normal-inverse-gamma parameters (Amini et al. 2020), the branches uMedGround left unused",
)  # fmt: skip
class EvidentialBoxHead(nn.Module):
    """A normal-inverse-gamma law per coordinate (Amini et al. 2020) from four branches.

    uMedGround carries these branches commented out, with beta from softplus + 0.2: no standard deviation can then fall
    below a tenth of the picture. Nor is gamma squashed there, so sides may turn negative and the overlap loss lead
    astray. Here gamma goes through a sigmoid, beta has a floor of 1e-5 and v one of 0.05; the caps (v and alpha at
    most 20) are as there.

    Args:
        compat: "reference" has the published floors and no sigmoid; the answer is clamped to [0, 1].

    Raises:
        ValueError: an unknown `compat`.
    """

    kind = "evidential"
    PARAMETERS = ("gamma", "v", "alpha", "beta")

    def __init__(self, hidden_dim: int, inner_dim: int = 64, compat: str | None = None):
        super().__init__()
        if compat not in (None, "reference"):
            raise ValueError(f"compat {compat!r} is not known; choose 'reference' or leave it out")
        self.compat = compat
        for name in self.PARAMETERS:
            branch = [nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, inner_dim)]
            setattr(self, f"transform_{name}", nn.Sequential(*branch, nn.ReLU(), nn.Linear(inner_dim, 4)))

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        """[N, D], or [N, T, D] of which the second token is read, as in the published branches."""
        states = states[:, 1] if states.ndim == 3 else states
        gamma = self.transform_gamma(states).float()
        v = F.softplus(self.transform_v(states).float())
        alpha = (F.softplus(self.transform_alpha(states).float()) + 1).clamp(max=20)
        beta = F.softplus(self.transform_beta(states).float())
        if self.compat == "reference":
            v, beta = v.clamp(max=20), beta + 0.2
        else:
            # Errors are fractions of an image: their squares, beta's unit, are hundredths.
            v, beta, gamma = (v + 0.05).clamp(max=20), 0.01 * beta + 1e-5, gamma.sigmoid()
        # Aleatoric b / (a - 1) plus epistemic b / (v (a - 1)); alpha may touch 1 in low precision.
        variance = beta / (alpha - 1).clamp(min=1e-4) * (1 + 1 / v.clamp(min=1e-4))
        evidence = {"gamma": gamma, "v": v, "alpha": alpha, "beta": beta}
        return BoxPrediction(gamma.clamp(0, 1), std_cxcywh_to_xyxy(variance.sqrt()), evidence=evidence, kind=self.kind)

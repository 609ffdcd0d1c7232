"""Box heads: the state of a [BOX] token, or the output tokens of a mask decoder, to a box and its uncertainty."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import nn

from unimed.models.heads.box_coordinates import cxcywh_to_xyxy
from unimed.models.heads.box_losses import answer_loss, laplace_loss, mhp_loss, repulsion_loss, umhp_loss
from unimed.registry import HEADS


@dataclass
class BoxPrediction:
    """Boxes of N [BOX] tokens, as fractions of the frame the head works in.

    `boxes_cxcywh` [N, 4] is the answer. `std` [N, 4] is the standard deviation of each corner coordinate (x1, y1, x2,
    y2) in the same unit, None where the head gives no uncertainty; `log_scale` [N, 4] the logarithm of the Laplace
    scale of the corners. Heads with several hypotheses keep them: `hypotheses` [N, K, 4] (centre and size), `weights`
    [N, K] that sum to 1, `log_scales` [N, K, 4] of the corners. `evidence` holds gamma, v, alpha and beta of the
    evidential head, [N, 4] each, over centre and size. `kind` is the name in `HEADS` and chooses the loss.
    """

    boxes_cxcywh: torch.Tensor
    std: torch.Tensor | None = None
    log_scale: torch.Tensor | None = None
    hypotheses: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    log_scales: torch.Tensor | None = None
    evidence: dict[str, torch.Tensor] | None = None
    kind: str = "point"

    def __len__(self) -> int:
        return len(self.boxes_cxcywh)

    @property
    def boxes_xyxy(self) -> torch.Tensor:
        return cxcywh_to_xyxy(self.boxes_cxcywh)

    def uncertainty(self) -> torch.Tensor | None:
        """[N], one number per box: mean standard deviation of the corners over the root of the area; None without."""
        if self.std is None:
            return None
        return self.std.mean(dim=1) / self.boxes_cxcywh[:, 2:].clamp(min=1e-6).prod(dim=1).sqrt()

    def entropy(self) -> torch.Tensor | None:
        """[N], entropy in nats of the weights of the hypotheses; 0 when one of them has all; None without weights."""
        return None if self.weights is None else torch.special.entr(self.weights).sum(dim=1)

    def select(self, rows) -> BoxPrediction:
        """The prediction of some rows (indices, slice or bool mask)."""

        def take(value):
            if isinstance(value, dict):
                return {name: item[rows] for name, item in value.items()}
            return value[rows] if isinstance(value, torch.Tensor) else value

        return BoxPrediction(**{field.name: take(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class BoxHead:
    """All there is to know of a kind of box head: its entry in `HEADS`.

    Args:
        build: `build(hidden_dim, **options)` -> module with `forward(states) -> BoxPrediction`.
        loss: `loss(prediction, target_xyxy, options)` -> named terms, see `unimed.models.heads.box_losses`.
        about: what it predicts, in a line.
        reads_tokens: its hypotheses are output tokens of a mask decoder where there is one; `build` takes `tokens`.
        options: numbers of its own loss with their defaults, beside `unimed.losses.box.OPTIONS`.
    """

    build: Callable[..., nn.Module]
    loss: Callable[..., dict[str, torch.Tensor]]
    about: str = ""
    reads_tokens: bool = False
    options: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, hidden_dim: int, **options) -> nn.Module:
        return self.build(hidden_dim, **options)


def box_head(kind: str, loss: Callable[..., dict[str, torch.Tensor]], **facts):
    """Register a class (or function) as the box head `kind`; `facts` are the other fields of `BoxHead`.

    Raises:
        KeyError: the kind is taken.
    """

    def register(build):
        HEADS.register_module(name=kind, module=BoxHead(build, loss, **facts))
        return build

    return register


def mixture_moments(values: torch.Tensor, weights: torch.Tensor | None = None, within: torch.Tensor | None = None):
    """Mean and standard deviation over hypotheses.

    Args:
        values: [N, K, D].
        weights: [N, K] that sum to 1; None for K equal members, whose variance is divided by K - 1, as uMedGround
            reports it.
        within: [N, K, D] standard deviation of each hypothesis itself.

    Returns:
        mean [N, D] and standard deviation [N, D].
    """
    if weights is None:
        mean = values.mean(dim=1)
        variance = (values - mean[:, None]).square().sum(dim=1) / max(values.shape[1] - 1, 1)
        if within is not None:
            variance = variance + within.square().mean(dim=1)
    else:
        weights = weights[..., None]
        mean = (weights * values).sum(dim=1)
        variance = (weights * (values - mean[:, None]).square()).sum(dim=1)
        if within is not None:
            variance = variance + (weights * within.square()).sum(dim=1)
    # The gradient of a root at zero is infinite, and equal hypotheses are allowed.
    return mean, variance.clamp(min=1e-12).sqrt()


def combine_draws(draws_cxcywh: torch.Tensor, weights: torch.Tensor | None = None) -> BoxPrediction:
    """Boxes drawn S times - by dropout at test time, test-time augmentation or an ensemble - as one prediction.

    Args:
        draws_cxcywh: [S, N, 4], each draw in the frame of the same picture.
        weights: [S] that sum to 1; equal if None.

    Raises:
        ValueError: fewer than two draws have no spread.
    """
    if draws_cxcywh.ndim != 3 or len(draws_cxcywh) < 2:
        raise ValueError(f"draws must be [S, N, 4] with S of at least 2, got {tuple(draws_cxcywh.shape)}")
    hypotheses = draws_cxcywh.transpose(0, 1)
    rows = None if weights is None else weights.expand(hypotheses.shape[:2])
    mean, _ = mixture_moments(hypotheses, rows)
    _, std = mixture_moments(cxcywh_to_xyxy(hypotheses), rows)
    return BoxPrediction(mean, std, hypotheses=hypotheses, weights=rows, kind="draws")


_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class BoxMlp(nn.Module):
    """Three linear layers with an activation between them. [..., D] -> [..., outputs].

    Args:
        activation: "relu", as LISA and uMedGround decode, or "gelu". Where a head learns from few boxes, units of the
            former die: of 256 nine were left after the quickstart, and every box was the same.

    Raises:
        ValueError: another activation.
    """

    def __init__(self, hidden_dim: int, outputs: int = 4, width: int | None = None, activation: str = "relu"):
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not known; choose one of: {', '.join(_ACTIVATIONS)}")
        width, between = width or hidden_dim, _ACTIVATIONS[activation]
        self.layers = nn.Sequential(
            nn.Linear(hidden_dim, width), between(), nn.Linear(width, width), between(), nn.Linear(width, outputs)
        )

    def raw(self, states: torch.Tensor) -> torch.Tensor:
        return self.layers(states).float()


@box_head("point", answer_loss, about="one box, no uncertainty")
class PointBoxHead(BoxMlp):
    """A centre and a size by a sigmoid; no uncertainty (uMedGround's plain head)."""

    kind = "point"

    def __init__(self, hidden_dim: int, width: int | None = None, activation: str = "relu"):
        super().__init__(hidden_dim, 4, width, activation)

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        """[N, D], or decoder tokens [N, T, D] of which the first is read."""
        return BoxPrediction(self.raw(first_token(states)).sigmoid(), kind=self.kind)


@box_head("laplace", laplace_loss, about="one box and a Laplace scale per corner, by likelihood")
class LaplaceBoxHead(BoxMlp):
    """A box and, per corner coordinate, the scale of a Laplace distribution around it.

    The scale is trained by likelihood, so a hard box says that it is hard; `std` is sqrt(2) times the scale.
    """

    kind = "laplace"

    def __init__(self, hidden_dim: int, width: int | None = None, activation: str = "relu"):
        super().__init__(hidden_dim, 8, width, activation)

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        """[N, D], or decoder tokens [N, T, D] of which the first is read."""
        box, log_scale = self.raw(first_token(states)).chunk(2, dim=-1)
        # Between a thousandth and the whole of the image.
        log_scale = -6.9 * torch.sigmoid(log_scale)
        return BoxPrediction(box.sigmoid(), 2**0.5 * log_scale.exp(), log_scale, kind=self.kind)


class HypothesisBoxHead(BoxMlp):
    """K boxes by ONE shared network, as published: the answer is their mean, the spread their standard deviation.

    On a mask decoder the hypotheses are its first K output tokens. On a language state there is one vector, so each
    hypothesis adds a trained query to it; that part is ours. uMedGround averages over the hypotheses of ALL phrases of
    an image, here every phrase has its own. The kinds "mhp", "umhp" and "uncertain" differ in the loss alone
    (`unimed.losses.box`).

    Args:
        tokens: whether states are decoder tokens; published weights have no queries.
    """

    def __init__(
        self, hidden_dim: int, kind: str = "mhp", hypotheses: int = 3, tokens: bool = False, activation: str = "relu"
    ):
        super().__init__(hidden_dim, activation=activation)
        if hypotheses < 2:
            raise ValueError(f"hypotheses must be at least 2 to have a spread, got {hypotheses}")
        self.kind, self.count = kind, hypotheses
        self.queries = None if tokens else new_queries(hypotheses, hidden_dim)

    def forward(self, states: torch.Tensor) -> BoxPrediction:
        """[N, D] or [N, at least K, D]."""
        hypotheses = self.raw(hypothesis_states(states, self.count, self.queries)).sigmoid()  # [N, K, 4]
        mean, _ = mixture_moments(hypotheses)
        _, std = mixture_moments(cxcywh_to_xyxy(hypotheses))
        return BoxPrediction(mean, std, hypotheses=hypotheses, kind=self.kind)


for _kind, _loss, _about in (
    ("mhp", mhp_loss, "K boxes, the first is the main one (uMedGround --mhp_box_head)"),
    ("umhp", umhp_loss, "K boxes weighted by their error (uMedGround --Umhp_box_head)"),
    ("uncertain", repulsion_loss, "K boxes pushed apart, trained on their mean (uMedGround --uncertain_box_head)"),
):
    box_head(_kind, _loss, about=_about, reads_tokens=True)(functools.partial(HypothesisBoxHead, kind=_kind))


def first_token(states: torch.Tensor) -> torch.Tensor:
    """[N, D], or [N, T, D] -> [N, D] of its first token."""
    return states[:, 0] if states.ndim == 3 else states


def new_queries(count: int, hidden_dim: int) -> nn.Parameter:
    """Learnt offsets [count, hidden_dim] that tell hypotheses of one state apart."""
    return nn.Parameter(torch.randn(count, hidden_dim) * hidden_dim**-0.5)


def hypothesis_states(states: torch.Tensor, count: int, queries: torch.Tensor | None) -> torch.Tensor:
    """[N, D] plus queries, or the first `count` tokens of [N, T, D] -> [N, count, D].

    Raises:
        ValueError: fewer tokens than hypotheses, or one state for a head without queries.
    """
    if states.ndim == 3:
        if states.shape[1] < count:
            raise ValueError(f"{count} hypotheses need as many decoder tokens, got {states.shape[1]}")
        return states[:, :count]
    if queries is None:
        raise ValueError("a box head built with tokens=True reads the tokens of a mask decoder, [N, T, D]")
    return states[:, None] + queries.to(states.dtype)

"""Box heads by name."""

from __future__ import annotations

from torch import nn

from unimed.models.heads.box import HypothesisBoxHead, LaplaceBoxHead, PointBoxHead
from unimed.models.heads.box_uncertainty import EvidentialBoxHead, LaplaceMixtureBoxHead, WeightedBoxHead

#: Kind of box head -> what it is; `build_box_head` builds them.
BOX_HEADS = {
    "point": "one box, no uncertainty",
    "laplace": "one box and a Laplace scale per corner, by likelihood",
    "mhp": "K boxes, the first is the main one (uMedGround --mhp_box_head)",
    "umhp": "K boxes weighted by their error (uMedGround --Umhp_box_head)",
    "uncertain": "K boxes pushed apart, trained on their mean (uMedGround --uncertain_box_head)",
    "rwta": "K boxes with weights, relaxed winner takes all (Rupprecht et al. 2017)",
    "laplace_mixture": "K Laplace components with weights and scales, by likelihood",
    "evidential": "normal-inverse-gamma parameters (Amini et al. 2020), the branches uMedGround left unused",
}


def build_box_head(kind: str, hidden_dim: int, **options) -> nn.Module:
    """A box head by name; `forward(states) -> BoxPrediction`.

    Args:
        kind: a key of `BOX_HEADS`.
        hidden_dim: width of the states.
        options: of the class, such as `hypotheses` (3) and `tokens` (False: one state per box).

    Raises:
        ValueError: unknown kind, or an option the kind does not have.
    """
    builders = {
        "point": PointBoxHead,
        "laplace": LaplaceBoxHead,
        "rwta": WeightedBoxHead,
        "laplace_mixture": LaplaceMixtureBoxHead,
        "evidential": EvidentialBoxHead,
    }
    if kind not in BOX_HEADS:
        raise ValueError(f"no box head {kind!r}; known are {', '.join(BOX_HEADS)}")
    try:
        if kind in builders:
            return builders[kind](hidden_dim, **options)
        return HypothesisBoxHead(hidden_dim, kind=kind, **options)
    except TypeError as error:
        raise ValueError(f"box head {kind!r} does not take {sorted(options)}: {error}") from error

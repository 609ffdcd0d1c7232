"""Box heads by the name of their kind; each is one entry of `unimed.registry.HEADS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from unimed.models.heads.box import BoxHead
from unimed.registry import HEADS, RegistryError, look_up, registered


def box_heads() -> dict[str, BoxHead]:
    """Kind -> entry of all box heads, those of plug-ins too."""
    return registered(HEADS)


def build_box_head(kind: str, hidden_dim: int, **options) -> nn.Module:
    """A box head by name; `forward(states) -> BoxPrediction`.

    Args:
        kind: a key of `box_heads()`.
        hidden_dim: width of the states.
        options: of the class, such as `hypotheses` (3) and `tokens` (False: one state per box).

    Raises:
        ValueError: unknown kind, or an option the kind does not have.
    """
    try:
        return look_up(kind, HEADS).build(hidden_dim, **options)
    except RegistryError as error:
        raise ValueError(f"box head: {error}") from error
    except TypeError as error:
        raise ValueError(f"box head {kind!r} does not take {sorted(options)}: {error}") from error


def box_head_options(box_head: str | Mapping) -> dict:
    """Arguments of `build_box_head` for a head behind a mask decoder, whose tokens it reads if its kind can.

    Args:
        box_head: a kind, or arguments with "kind".
    """
    options = {"kind": box_head} if isinstance(box_head, str) else dict(box_head)
    entry = box_heads().get(options.get("kind"))
    return ({"tokens": True} if entry is not None and entry.reads_tokens else {}) | options


def loss_of(kind: str) -> tuple[Callable, Mapping[str, float]]:
    """Loss of a kind, and its own options; boxes that were drawn several times ("draws") are trained on their mean.

    Raises:
        RegistryError: unknown kind.
    """
    entry = look_up("point" if kind == "draws" else kind, HEADS)
    return entry.loss, entry.options

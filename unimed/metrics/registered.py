"""Registration of metrics: the decorator, and what has to be known of a metric besides its formula.

    @metric("dice", kind="mask")
    def dice(prediction, truth): ...

A registered metric of a kind that rows are made of appears in rows and tables without another line of code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unimed.registry import METRICS, registered

#: Kind -> what the function takes.
KINDS = {
    "mask": "two bool masks of one shape (prediction, truth)",
    "surface": "two bool masks of one shape and the spacing in mm of their axes",
    "box": "two boxes xyxy in pixels",
    "boxes": "two lists of boxes xyxy in pixels",
    "text": "two strings",
    "corpus": "two lists of strings",
    "phrases": "two lists of phrases",
    "labels": "two lists of class names or numbers",
    "detection": "scores in [0, 1] and whether each is positive",
    "confidence": "confidences in [0, 1] and outcomes in [0, 1]",
    "instances": "two integer label maps of one shape",
    "similarity": "similarities [N, C] and the number of the right column of each row",
    "selective": "uncertainties and risks",
}


@dataclass(frozen=True)
class Metric:
    """A pure function of a prediction and the truth, with what it promises.

    Args:
        kind: one of `KINDS`.
        range: smallest and largest value; a perfect prediction reaches the better end unless `perfect` says otherwise.
        better: "higher" or "lower".
        aggregation: how a value of many cases comes about.
        nan: when the value is NaN; "" for never.
        perfect: value of a perfect prediction; None where that depends on the data (CIDEr on the corpus).
        unordered: the value does not depend on the order in which cases or items are given.
    """

    name: str
    function: Callable[..., float]
    kind: str
    range: tuple[float, float] = (0.0, 1.0)
    better: str = "higher"
    aggregation: str = "mean over cases"
    nan: str = ""
    perfect: float | None = 1.0
    unordered: bool = True

    def __call__(self, prediction, truth, *further, **options) -> float:
        return self.function(prediction, truth, *further, **options)


def metric(name: str, kind: str, **promises):
    """Register a function as the metric `name`; `promises` are the other fields of `Metric`.

    Raises:
        ValueError: an unknown kind or direction.
        KeyError: the name is taken.
    """
    if kind not in KINDS or promises.get("better", "higher") not in ("higher", "lower"):
        raise ValueError(f"metric {name!r}: kind must be one of {', '.join(KINDS)}, better 'higher' or 'lower'")

    def register(function):
        METRICS.register_module(name=name, module=Metric(name, function, kind, **promises))
        return function

    return register


def metrics_of(kind: str) -> dict[str, Metric]:
    """Name -> metric of all that are registered for a kind."""
    return {name: one for name, one in registered(METRICS).items() if one.kind == kind}

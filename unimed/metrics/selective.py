"""Selective prediction: risk against coverage of an uncertainty, and the areas under that curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from unimed.metrics.classification import auroc
from unimed.metrics.registered import metric
from unimed.metrics.statistics import bootstrap, clopper_pearson

#: A number per case.
Values = Sequence[float] | np.ndarray


def _sorted_risk(uncertainty, risk):
    uncertainty, risk = np.asarray(uncertainty, dtype=np.float64), np.asarray(risk, dtype=np.float64)
    if uncertainty.shape != risk.shape or uncertainty.ndim != 1 or not len(risk):
        raise ValueError(f"uncertainty {uncertainty.shape} and risk {risk.shape} must be equally long, not empty")
    if np.isnan(uncertainty).any() or np.isnan(risk).any():
        raise ValueError("uncertainty and risk must not hold NaN")
    # Equal uncertainties have no order; each gets the mean risk of its group, which is what shuffling them would
    # give on average. A constant uncertainty thus scores exactly as a random one.
    _, group, count = np.unique(uncertainty, return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=risk) / count
    return shared[group][np.argsort(uncertainty, kind="stable")]


def risk_coverage(uncertainty: Values, risk: Values) -> tuple[np.ndarray, np.ndarray]:
    """Coverage k / n and mean risk of the k most certain cases, k = 1..n: two arrays [N].

    Args:
        uncertainty: [N] on any scale, high is unsure. risk: [N], e.g. 1 - IoU or IoU < 0.5.
    """
    ordered = _sorted_risk(uncertainty, risk)
    k = np.arange(1, len(ordered) + 1)
    return k / len(ordered), np.cumsum(ordered) / k


@metric("aurc", "selective", range=(0.0, float("inf")), better="lower", perfect=0.0, aggregation="over the set")
def aurc(uncertainty: Values, risk: Values) -> float:
    """Area under the risk-coverage curve: the mean over k of the mean risk of the k most certain (Geifman 2019)."""
    return float(risk_coverage(uncertainty, risk)[1].mean())


def random_aurc(risk: Values) -> float:
    """The AURC an uncertainty without information has on average: the mean risk."""
    return float(np.mean(risk))


@metric("e_aurc", "selective", range=(0.0, float("inf")), better="lower", perfect=0.0, aggregation="over the set")
def e_aurc(uncertainty: Values, risk: Values) -> float:
    """Excess AURC over an oracle that sorts by the risk itself; 0 is perfect."""
    return aurc(uncertainty, risk) - aurc(risk, risk)


@metric("augrc", "selective", range=(0.0, float("inf")), better="lower", perfect=0.0, aggregation="over the set")
def augrc(uncertainty: Values, risk: Values) -> float:
    """Area under the generalised risk-coverage curve (Traub 2024): mean over k of (1/n) sum of the first k risks."""
    ordered = _sorted_risk(uncertainty, risk)
    return float(np.cumsum(ordered).mean() / len(ordered))


def risk_at(uncertainty: Values, risk: Values, coverage: float) -> float:
    """Mean risk when the most certain share `coverage` of cases is kept (at least one case)."""
    kept, risks = risk_coverage(uncertainty, risk)
    return float(risks[min(len(kept) - 1, int(np.searchsorted(kept, coverage - 1e-12)))])


def guaranteed_threshold(
    uncertainty: Values, failure: Sequence[bool], target: float, *, level: float = 0.95, steps: int = 10
) -> dict[str, float] | None:
    """The widest share of cases to keep so that the failure rate stays below `target` with probability `level`.

    `steps` coverages are tried from 1 downwards; each is held to the exact upper bound of Clopper and Pearson at a
    level that pays for all of them (Geifman 2017). Cases must be independent: give one per patient.

    Returns:
        dict with uncertainty (keep cases up to it), coverage and upper_bound; None when no coverage can be promised.
    """
    failure = np.asarray(failure, dtype=bool)
    values = np.asarray(uncertainty, dtype=np.float64)
    _sorted_risk(values, failure.astype(float))
    for fraction in np.arange(steps, 0, -1) / steps:
        limit = float(np.sort(values)[max(0, int(np.ceil(fraction * len(values))) - 1)])
        kept = values <= limit
        # One-sided at 1 - (1 - level) / steps is the upper end of a two-sided interval with half the miss.
        bound = clopper_pearson(int(failure[kept].sum()), int(kept.sum()), 1 - 2 * (1 - level) / steps).high
        if bound <= target:
            return {"uncertainty": limit, "coverage": float(kept.mean()), "upper_bound": bound}
    return None


def selective_scores(
    uncertainty: Values,
    risk: Values,
    *,
    groups: Sequence | None = None,
    failure: Sequence[bool] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> dict:
    """All numbers of selective prediction with patient-level bootstrap intervals.

    Args:
        uncertainty, risk: [N]; groups: patient per case.
        failure: [N] bool, by default risk > 0.5 (IoU below 0.5 where risk is 1 - IoU).

    Returns:
        aurc, e_aurc, augrc, risk_at_80, risk_at_90, failure_auroc, spearman as `Interval`; random_aurc as a float.
    """
    u, r = np.asarray(uncertainty, dtype=np.float64), np.asarray(risk, dtype=np.float64)
    failed = r > 0.5 if failure is None else np.asarray(failure, dtype=bool)
    measures = {
        "aurc": lambda i: aurc(u[i], r[i]),
        "e_aurc": lambda i: e_aurc(u[i], r[i]),
        "augrc": lambda i: augrc(u[i], r[i]),
        "risk_at_80": lambda i: risk_at(u[i], r[i], 0.8),
        "risk_at_90": lambda i: risk_at(u[i], r[i], 0.9),
        "failure_auroc": lambda i: auroc(u[i], failed[i]),
        "spearman": lambda i: _spearman(u[i], r[i]),
    }
    options: dict[str, Any] = {"groups": groups, "resamples": resamples, "seed": seed}
    result = {name: bootstrap(measure, len(r), **options) for name, measure in measures.items()}
    return result | {"random_aurc": random_aurc(r)}


def _spearman(first, second):
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(first, second).statistic)


#: One color per curve in every plot of confidence, whichever of them it shows; others take what is left.
CURVE_COLORS = {"as the model said": "#e69f00", "calibrated": "#0072b2"}
_FURTHER_COLORS = ("#009e73", "#cc79a7", "#d55e00", "#56b4e9")


def color_of_curve(name: str, place: int = 0) -> str:
    """The colour of a curve by its name."""
    return CURVE_COLORS.get(name, _FURTHER_COLORS[place % len(_FURTHER_COLORS)])


def plot_risk_coverage(path: str | Path, curves: dict[str, tuple[Sequence[float], Sequence[float]]]) -> Path:
    """Risk-coverage curves as a PNG: name -> (uncertainty, risk), with oracle and random of the first beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for place, (name, (uncertainty, risk)) in enumerate(curves.items()):
        label = f"{name} (AURC {aurc(uncertainty, risk):.3f})"
        axes.plot(*risk_coverage(uncertainty, risk), label=label, color=color_of_curve(name, place))
    _, risk = next(iter(curves.values()))
    axes.plot(*risk_coverage(risk, risk), "k:", label=f"oracle (AURC {aurc(risk, risk):.3f})")
    axes.axhline(random_aurc(risk), color="grey", linestyle="--", label=f"random ({random_aurc(risk):.3f})")
    axes.set(
        xlabel="coverage: fraction of cases kept, the most certain first",
        ylabel="risk: mean of 1 - IoU of those kept",
        xlim=(0, 1),
        ylim=(0, None),
        title=f"{len(risk)} cases",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return path

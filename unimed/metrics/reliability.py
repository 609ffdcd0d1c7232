"""Calibration errors of confidences (ECE and others), and recalibration: temperature, Platt, isotonic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from scipy.special import expit, logit

from unimed.metrics.registered import metric

MAPS = ("temperature", "platt", "isotonic")
_TINY = 1e-6


def _checked(confidence, outcome):
    confidence, outcome = np.asarray(confidence, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if confidence.shape != outcome.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence {confidence.shape} and outcome {outcome.shape} must be equally long, not empty")
    for name, values in (("confidence", confidence), ("outcome", outcome)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must lie in [0, 1] without NaN")
    return confidence, outcome


@metric("ece", "confidence", range=(0.0, 1.0), better="lower", perfect=0.0, aggregation="over the set")
def ece(confidence: Sequence[float], outcome: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error: sum over equal-width bins of n_b / n * |mean confidence - mean outcome|.

    Args:
        confidence: [N] in [0, 1]. outcome: [N], 1 where right and 0 where wrong (or an IoU, see `laece`).
    """
    confidence, outcome = _checked(confidence, outcome)
    return _gap(_bin(confidence, bins), confidence, outcome)


def d_ece(confidence: Sequence[float], outcome: Sequence[float], places: np.ndarray, bins: int = 5) -> float:
    """Detection ECE (Kueppers 2020): bins over confidence and box place or size together.

    Args:
        places: [N, K] in [0, 1], e.g. box centre and sides as fractions of the image.
    """
    confidence, outcome = _checked(confidence, outcome)
    places = np.asarray(places, dtype=np.float64)
    if places.ndim != 2 or len(places) != len(confidence) or not ((places >= 0) & (places <= 1)).all():
        raise ValueError(f"places must be [{len(confidence)}, K] in [0, 1], got shape {places.shape}")
    cells = np.stack([_bin(confidence, bins), *(_bin(column, bins) for column in places.T)], axis=1)
    return _gap(np.unique(cells, axis=0, return_inverse=True)[1].ravel(), confidence, outcome)


@metric("laece", "confidence", range=(0.0, 1.0), better="lower", perfect=0.0, aggregation="over the set")
def laece(
    confidence: Sequence[float], iou: Sequence[float], classes: Sequence[str] | None = None, bins: int = 25
) -> float:
    """Localisation-aware ECE (Kuzucu 2024, LaECE_0): confidence against the IoU itself; mean over classes if given."""
    confidence, iou = _checked(confidence, iou)
    names = np.asarray([""] * len(iou) if classes is None else list(classes))
    parts = [names == name for name in np.unique(names)]
    return float(np.mean([_gap(_bin(confidence[p], bins), confidence[p], iou[p]) for p in parts]))


@metric("brier", "confidence", range=(0.0, 1.0), better="lower", perfect=0.0, aggregation="over the set")
def brier(confidence: Sequence[float], outcome: Sequence[float]) -> float:
    """Mean squared difference of confidence and outcome."""
    confidence, outcome = _checked(confidence, outcome)
    return float(((confidence - outcome) ** 2).mean())


def reliability_bins(confidence: Sequence[float], outcome: Sequence[float], bins: int = 10) -> list[dict[str, float]]:
    """Rows of a reliability diagram: mean confidence, mean outcome and count of every bin that is not empty."""
    confidence, outcome = _checked(confidence, outcome)
    index = _bin(confidence, bins)
    return [
        {
            "confidence": float(confidence[index == b].mean()),
            "outcome": float(outcome[index == b].mean()),
            "count": int((index == b).sum()),
        }
        for b in np.unique(index)
    ]


def sigma_scale(error_px: np.ndarray, sigma_px: np.ndarray) -> tuple[float, ...]:
    """Factor per coordinate that makes stated spreads true: sqrt(mean((error / sigma)^2)), [N, 4] each to 4 numbers."""
    error, sigma = np.asarray(error_px, dtype=np.float64), np.asarray(sigma_px, dtype=np.float64)
    if error.shape != sigma.shape or error.ndim != 2 or not len(error) or not (sigma > 0).all():
        raise ValueError(f"errors and positive spreads must be [N, 4] each, got {error.shape} and {sigma.shape}")
    return tuple(float(v) for v in np.sqrt(((error / sigma) ** 2).mean(0)))


def sigma_coverage(
    error_px: np.ndarray, sigma_px: np.ndarray, z: Sequence[float] = (0.6745, 1.0, 1.96)
) -> dict[str, float]:
    """Share of coordinates with |error| <= z sigma, per z; a Gaussian of the stated spread has 0.5, 0.683, 0.95."""
    ratio = np.abs(np.asarray(error_px, dtype=np.float64) / np.asarray(sigma_px, dtype=np.float64))
    return {f"within_{value:g}_sigma": float((ratio <= value).mean()) for value in z}


def _bin(values, bins):
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    return np.minimum((values * bins).astype(int), bins - 1)


def _gap(index, confidence, outcome):
    total = 0.0
    for b in np.unique(index):
        part = index == b
        total += part.sum() * abs(confidence[part].mean() - outcome[part].mean())
    return float(total / len(confidence))


@dataclass(frozen=True)
class ProbabilityMap:
    """A monotone map from raw signals to a calibrated probability, as plain numbers.

    temperature: sigmoid(logit(c) / T). platt: sigmoid(w . f + b), where the features f are logit(c) or, with several
    signals, whatever columns it was fitted on. isotonic: steps joined by straight lines through (x, y) knots.
    """

    kind: str
    parameters: dict[str, list[float]]

    @classmethod
    def fit(cls, kind: str, signals: np.ndarray, outcome: Sequence[float] | np.ndarray) -> ProbabilityMap:
        """Learn the map on data that are not used for testing.

        Args:
            kind: one of `MAPS`.
            signals: confidence [N] in [0, 1]; for "platt" also [N, K] features on any scale.
            outcome: [N] in [0, 1], e.g. IoU >= 0.5 or the IoU itself.

        Raises:
            ValueError: unknown kind, lengths differ, signals not finite or outside [0, 1].
        """
        if kind not in MAPS:
            raise ValueError(f"kind must be one of {MAPS}, got {kind!r}")
        signals, outcome = np.asarray(signals, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
        if len(signals) != len(outcome) or not len(outcome) or not np.isfinite(signals).all():
            raise ValueError(f"signals {signals.shape} and outcome {outcome.shape} must be equally long and finite")
        if signals.ndim == 1:
            _checked(signals, outcome)
        elif kind != "platt":
            raise ValueError(f"{kind} takes one confidence per case; only platt takes several signals")
        if kind == "isotonic":
            order = np.argsort(signals, kind="stable")
            # Equal confidences must get one value, or the map would not be a function.
            x, start, count = np.unique(signals[order], return_index=True, return_counts=True)
            means = np.add.reduceat(outcome[order], start) / count
            y = scipy.optimize.isotonic_regression(means, weights=count.astype(float)).x
            return cls(kind, {"x": x.tolist(), "y": y.tolist()})
        features = _features(signals)
        if kind == "temperature":
            z = features[:, 0]
            best = scipy.optimize.minimize_scalar(
                lambda t: _loss(z / math.exp(t), outcome), bounds=(-5, 5), method="bounded"
            )
            return cls(kind, {"temperature": [float(math.exp(best.x))]})
        center, spread = features.mean(0), features.std(0)
        spread = np.where(spread > 1e-12, spread, 1.0)
        scaled = (features - center) / spread

        def objective(w):
            # The ridge keeps separable data finite and is too weak to show elsewhere.
            residual = (expit(scaled @ w[:-1] + w[-1]) - outcome) / len(outcome)
            value = _loss(scaled @ w[:-1] + w[-1], outcome) + 5e-5 * w @ w
            return value, np.append(scaled.T @ residual, residual.sum()) + 1e-4 * w

        found = scipy.optimize.minimize(objective, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x
        weight = found[:-1] / spread
        return cls(kind, {"weight": weight.tolist(), "bias": [float(found[-1] - center @ weight)]})

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """Calibrated probabilities [N] of confidences [N] or features [N, K]."""
        signals = np.asarray(signals, dtype=np.float64)
        if self.kind == "isotonic":
            return np.interp(signals, self.parameters["x"], self.parameters["y"])
        features = _features(signals)
        if self.kind == "temperature":
            return expit(features[:, 0] / self.parameters["temperature"][0])
        return expit(features @ np.array(self.parameters["weight"]) + self.parameters["bias"][0])


def _features(signals):
    return logit(np.clip(signals, _TINY, 1 - _TINY))[:, None] if signals.ndim == 1 else signals


def _loss(z, outcome):
    return float((np.logaddexp(0, z) - outcome * z).mean())

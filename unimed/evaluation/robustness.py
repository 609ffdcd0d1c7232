"""Image corruptions for robustness tests: noise, blur, contrast, rotation, letterbox, five severities; truth moves too.

for kind, severity in settings():
    worse = disturb(image, kind, severity, seed=0)
    prediction = model.predict(worse.image, question)
    scores.append(paired_iou(prediction_box, worse.box(true_box)))
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unimed.metrics.masks import nan_mean

# Per kind the parameter of severity 1..5.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "noise": (0.02, 0.05, 0.10, 0.20, 0.30),  # standard deviation as a share of the value range
    "blur": (1.0, 2.0, 3.0, 4.5, 6.0),  # standard deviation in pixels of an image 256 pixels high
    "contrast": (0.8, 0.6, 0.45, 0.3, 0.2),  # factor on the distance from the mean
    "rotation": (3.0, 6.0, 10.0, 15.0, 20.0),  # degrees, the direction drawn
    "letterbox": (0.9, 0.8, 0.7, 0.6, 0.5),  # side length that is left of the image, black around it
}


@dataclass(frozen=True)
class Disturbed:
    """A disturbed image and the way its pixels went.

    `image` has the shape and dtype of the original. `matrix` is 3x3 and maps (x, y, 1) of the original pixel plane
    to the new one, where pixel (0, 0) covers 0..1 in x and y.
    """

    image: np.ndarray
    kind: str
    severity: int
    matrix: np.ndarray

    @property
    def moves(self) -> bool:
        """Whether pixels changed place, so that masks and boxes must follow."""
        return not np.array_equal(self.matrix, np.eye(3))

    def box(self, box_xyxy_px: Sequence[float]) -> tuple[float, float, float, float] | None:
        """The upright box around the moved box, clipped to the image; None when nothing of it is left inside.

        After a rotation it is larger than the thing inside; carry a mask where there is one, and take its box.
        """
        x1, y1, x2, y2 = box_xyxy_px
        corners = self.matrix @ np.array([[x1, x2, x2, x1], [y1, y1, y2, y2], [1, 1, 1, 1]])
        height, width = self.image.shape[:2]
        x, y = np.clip(corners[0], 0, width), np.clip(corners[1], 0, height)
        moved = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        return moved if moved[2] > moved[0] and moved[3] > moved[1] else None

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """A bool mask HxW moved with the image, nearest neighbour."""
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != self.image.shape[:2]:
            raise ValueError(f"a bool mask {self.image.shape[:2]} is needed, got {mask.dtype} {mask.shape}")
        return _warp(mask.astype(np.float32), self.matrix, order=0) > 0.5 if self.moves else mask.copy()


def settings(
    kinds: Sequence[str] | None = None, severities: Sequence[int] = (1, 2, 3, 4, 5)
) -> Iterator[tuple[str, int]]:
    """Every (kind, severity) of the suite, the undisturbed ("none", 0) first.

    Raises:
        ValueError: unknown kind.
    """
    kinds = list(SEVERITIES if kinds is None else kinds)
    if unknown := set(kinds) - set(SEVERITIES):
        raise ValueError(f"unknown disturbance {sorted(unknown)}; there are {list(SEVERITIES)}")
    yield "none", 0
    for kind in kinds:
        for severity in severities:
            yield kind, severity


def disturb(image: np.ndarray, kind: str, severity: int, *, seed: int = 0) -> Disturbed:
    """Disturb one image; the same seed gives the same image.

    Args:
        image: HxW or HxWxC, uint8, uint16 or float. Values stay within 0..255 or 0..65535 and never wrap around;
            floats stay within the range the image has.
        kind: "none" or one of `SEVERITIES`. severity: 1 to 5 (0 for "none").

    Raises:
        ValueError: unknown kind or severity, another shape or dtype, NaN in the image.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or not image.size:
        raise ValueError(f"image must be HxW or HxWxC, got shape {image.shape}")
    if kind == "none" and severity == 0:
        return Disturbed(image.copy(), kind, 0, np.eye(3))
    if kind not in SEVERITIES or severity not in range(1, 6):
        raise ValueError(f"kind must be one of {list(SEVERITIES)} with severity 1 to 5, got {kind!r}, {severity!r}")
    low, high = _range(image)
    strength = SEVERITIES[kind][severity - 1]
    # Every kind and severity draws its own numbers, so that no two settings share their noise.
    generator = np.random.default_rng([seed, severity, zlib.crc32(kind.encode())])
    values, matrix = image.astype(np.float64), np.eye(3)
    height, width = image.shape[:2]
    if kind == "noise":
        values += generator.normal(0, strength * (high - low), image.shape)
    elif kind == "blur":
        sigma = strength * height / 256
        values = ndimage.gaussian_filter(values, [sigma, sigma] + [0] * (image.ndim - 2), mode="nearest")
    elif kind == "contrast":
        values = values.mean() + strength * (values - values.mean())
    else:
        matrix = (
            _rotation(strength * generator.choice((-1, 1))) if kind == "rotation" else np.diag([strength, strength, 1])
        )
        center = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1.0]])
        matrix = center @ matrix @ np.linalg.inv(center)
        values = _warp(values, matrix, order=1, outside=low)
    values = np.clip(values, low, high)
    values = np.round(values) if image.dtype.kind == "u" else values
    return Disturbed(values.astype(image.dtype), kind, severity, matrix)


def reference_noise(image: np.ndarray, variance: float, seed: int = 0) -> np.ndarray:
    """Gaussian noise as published with uMedGround, kept only to reproduce its table (compat="reference").

    Dark pixels that turn negative wrap around to bright ones: 8-bit images lose their background. Use `disturb`.

    Args:
        image: uint8. variance: of the noise, on values in 0..1. seed: of numpy's legacy generator.
    """
    image = np.asarray(image)
    noise = np.random.RandomState(seed).normal(0, variance**0.5, image.shape)
    values = image.astype(np.float64) / 255 + noise
    values = np.clip(values, -1.0 if values.min() < 0 else 0.0, 1.0)
    return (values * 255).astype(np.int64).astype(np.uint8)


def run_suite(
    images: Sequence[np.ndarray],
    score: Callable[[int, Disturbed], Mapping[str, float]],
    *,
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
) -> list[dict]:
    """Score a model on every disturbance of every image.

    Args:
        score: takes the index of the image and its disturbed version, returns numbers (NaN is left out of means).

    Returns:
        One row per (kind, severity): the mean of every number over images, and `images`.
    """
    rows = []
    for kind, severity in settings(kinds, severities):
        scores = [score(index, disturb(image, kind, severity, seed=seed + index)) for index, image in enumerate(images)]
        names = list(dict.fromkeys(name for row in scores for name in row))
        means = {name: nan_mean([row.get(name, float("nan")) for row in scores]) for name in names}
        rows.append({"kind": kind, "severity": severity} | means | {"images": len(images)})
    return rows


def retained(rows: Sequence[Mapping], metric: str) -> dict[str, float]:
    """Share of the undisturbed value of `metric` that is left on average over severities, per kind."""
    clean = next((row[metric] for row in rows if row["kind"] == "none"), float("nan"))
    kinds = dict.fromkeys(row["kind"] for row in rows if row["kind"] != "none")
    return {
        kind: nan_mean([row[metric] for row in rows if row["kind"] == kind]) / clean if clean else float("nan")
        for kind in kinds
    }


def _range(image):
    if image.dtype == np.uint8:
        return 0.0, 255.0
    if image.dtype == np.uint16:
        return 0.0, 65535.0
    if image.dtype.kind != "f":
        raise ValueError(f"image must be uint8, uint16 or float, got {image.dtype}")
    if not np.isfinite(image).all():
        raise ValueError("image holds NaN or Inf")
    return float(image.min()), float(image.max())


def _rotation(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _warp(values, matrix, *, order, outside=0.0):
    """Pull every output pixel centre back through the matrix; axes are (row, column), the matrix is in (x, y)."""
    back = np.linalg.inv(matrix)
    swap = np.array([[0, 1], [1, 0]])
    linear = swap @ back[:2, :2] @ swap
    # Pixel centres lie at +0.5 in the plane and at whole numbers in the array.
    offset = linear @ np.array([0.5, 0.5]) + swap @ back[:2, 2] - 0.5
    planes = [values] if values.ndim == 2 else [values[..., c] for c in range(values.shape[2])]
    moved = [ndimage.affine_transform(p, linear, offset, order=order, mode="constant", cval=outside) for p in planes]
    return moved[0] if values.ndim == 2 else np.stack(moved, axis=-1)

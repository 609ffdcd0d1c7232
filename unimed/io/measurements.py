"""What is measured of a mask: volume, the two axes that RECIST reads off a slice, and the values under it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unimed.geometry import Geometry

#: Of a pixel the middles of its four edges: objects end half a pixel beyond the centres of their outer pixels.
_EDGES = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)])


@dataclass(frozen=True)
class Measurements:
    """Sizes are in mm and mm3, or pixels where `physical` is False; values in `unit` of the image.

    Attributes:
        voxels: number of them. volume_mm3: their volume.
        long_axis_mm: longest diameter in one slice (third array axis), between the edges of its outer pixels.
        short_axis_mm: longest diameter of that slice at a right angle to it.
        slice_index: where the two were found; -1 for an empty mask.
        mean, deviation: of the values under the mask (population deviation), None where they are not known.
        unit: UCUM unit of the values: "[hnsf'U]" for CT, else "1".
    """

    voxels: int
    volume_mm3: float
    long_axis_mm: float
    short_axis_mm: float
    slice_index: int
    mean: float | None = None
    deviation: float | None = None
    unit: str = "1"
    physical: bool = True

    @property
    def volume_ml(self) -> float:
        """Volume in millilitres."""
        return self.volume_mm3 / 1000


def measure(mask: np.ndarray, geometry: Geometry, values: np.ndarray | None = None, unit: str = "1") -> Measurements:
    """Measurements of a bool mask (I, J, K) or (I, J) in the grid of `geometry`.

    Args:
        values: of the image, of the shape of the mask; values that are not finite do not count.

    Raises:
        ValueError: values of another shape.
    """
    mask = mask[..., None] if mask.ndim == 2 else mask
    if values is not None:
        values = values[..., None] if values.ndim == 2 else values
        if values.shape != mask.shape:
            raise ValueError(f"values {values.shape} do not fit the mask {mask.shape}")
    count = int(mask.sum())
    mean = deviation = None
    if values is not None and count:
        under = np.asarray(values[mask], np.float64)
        under = under[np.isfinite(under)]
        if len(under):
            mean, deviation = float(under.mean()), float(under.std())
    long_mm, short_mm, where = _axes(mask, geometry)
    return Measurements(
        count, count * geometry.voxel_volume, long_mm, short_mm, where, mean, deviation, unit, geometry.is_physical
    )


def _axes(mask: np.ndarray, geometry: Geometry) -> tuple[float, float, int]:
    best = (0.0, 0.0, -1)
    for k in np.flatnonzero(mask.any((0, 1))):
        pixels = np.argwhere(mask[:, :, k])
        if len(pixels) > 64:  # only pixels at a rim can be the ends of a diameter
            plane = np.pad(mask[:, :, k], 1)
            inner = plane[:-2, 1:-1] & plane[2:, 1:-1] & plane[1:-1, :-2] & plane[1:-1, 2:]
            pixels = np.argwhere(mask[:, :, k] & ~inner)
        points = (pixels[:, None] + _EDGES).reshape(-1, 2)
        # In mm, in an orthonormal frame of the plane, so that sheared grids are measured rightly too.
        frame = np.linalg.qr(geometry.affine[:3, :2])[1]
        outline = _hull(points @ frame.T)
        away = outline[:, None] - outline[None]
        distances = np.hypot(away[..., 0], away[..., 1])
        first, second = np.unravel_index(distances.argmax(), distances.shape)
        if distances[first, second] > best[0] + 1e-9:
            along = away[second, first] / distances[first, second]
            best = (float(distances[first, second]), _widest(outline, along), int(k))
    return best


def _hull(points: np.ndarray) -> np.ndarray:
    from scipy.spatial import ConvexHull

    return points[ConvexHull(points).vertices]


def _widest(outline: np.ndarray, along: np.ndarray) -> float:
    """Longest chord of a convex polygon at a right angle to `along`: it starts at one of the corners."""
    across = np.array((-along[1], along[0]))
    t, u = outline @ along, outline @ across
    start, end = int(t.argmin()), int(t.argmax())
    ring = np.arange(len(t))
    one = np.roll(ring, -start)[: (end - start) % len(t) + 1]
    other = np.roll(ring, -end)[: (start - end) % len(t) + 1][::-1]
    widths = np.interp(t, t[one], u[one]) - np.interp(t, t[other], u[other])
    return float(np.abs(widths).max())

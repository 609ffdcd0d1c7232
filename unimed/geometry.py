"""Axis arithmetic on voxel grids, pure numpy. Patient space is RAS+ in millimetres."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Axes whose |cosine| is at most this count as perpendicular; rounding in headers stays below.
MAX_SHEAR = 2e-4


class GeometryError(ValueError):
    """A geometry that maps no voxel to a place (not 4x4, not finite, singular), or two grids that do not fit."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of an array lie in the patient.

    `affine` is 4x4 and maps voxel indices (i, j, k), the axes of the array in order, to patient millimetres
    in RAS+ (x to the Right, y to the Anterior, z to the Superior), as in NIfTI. `header` keeps what a writer may
    need of the source and is never interpreted here. `is_physical` is False for images whose format
    carries no spacing (PNG, JPEG): their unit is the pixel.

    Raises:
        GeometryError: the affine is not 4x4, holds NaN or Inf, or is singular.
    """

    affine: np.ndarray
    source_format: str = ""
    is_physical: bool = True
    header: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise GeometryError(f"affine must be 4x4, got shape {affine.shape}")
        if not np.isfinite(affine).all():
            raise GeometryError("affine holds NaN or Inf")
        if not np.allclose(affine[3], (0, 0, 0, 1)):
            raise GeometryError(f"the last row of an affine must be 0 0 0 1, got {affine[3].tolist()}")
        scale = np.linalg.norm(affine[:3, :3], axis=0)
        # The determinant is compared with the product of the column lengths, so that small voxels are no reason
        # to refuse and parallel axes always are.
        if (scale == 0).any() or abs(np.linalg.det(affine[:3, :3] / scale)) < 1e-6:
            raise GeometryError("affine is singular: two axes point the same way or one has no length")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def pixels(cls, source_format: str = "", header: Mapping[str, Any] | None = None) -> Geometry:
        """Geometry of an image without physical spacing: identity affine, unit pixels."""
        return cls(np.eye(4), source_format=source_format, is_physical=False, header=header or {})

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each array axis, in mm (pixels where `is_physical` is False)."""
        first, second, third = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(first), float(second), float(third)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3 (1 pixel where `is_physical` is False): |det|, right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def shear(self) -> float:
        """Largest |cosine| between two axes: 0 where all are perpendicular, as in every scan without gantry tilt."""
        axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.abs(axes.T @ axes - np.eye(3)).max())

    @property
    def is_sheared(self) -> bool:
        """Whether a format with a rotation and a spacing (NIfTI's qform, ITK's NIfTI reader) cannot hold the grid."""
        return self.shear > MAX_SHEAR

    @property
    def steps(self) -> tuple[str, ...]:
        """What the reader decided, repaired or assumed, in words; from `header["steps"]`."""
        return tuple(self.header.get("steps", ()))

    @property
    def orientation(self) -> str:
        """Three letters: the patient direction in which each array axis grows, e.g. "RAS" or "LPS"."""
        return axis_codes(self.affine)


POSITIVE = "RAS"
NEGATIVE = "LPI"

#: All 48 ways in which three array axes can follow the patient axes.
ALL_ORIENTATIONS = tuple(
    "".join(pair[sign] for pair, sign in zip(pairs, signs, strict=True))
    for pairs in itertools.permutations(tuple(zip(POSITIVE, NEGATIVE, strict=True)))
    for signs in itertools.product((0, 1), repeat=3)
)


def axis_assignment(affine: np.ndarray) -> tuple[tuple[int, int], ...]:
    """For each array axis (patient axis it follows best, +1 or -1), without using a patient axis twice.

    Oblique grids have no exact answer; of the six permutations the one with the largest summed cosine is taken,
    so that two axes near 45 degrees can never both claim the same direction.
    """
    rotation = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(rotation[patient, axis]) for axis, patient in enumerate(order)),
    )
    return tuple((patient, 1 if rotation[patient, axis] >= 0 else -1) for axis, patient in enumerate(best))


def axis_codes(affine: np.ndarray) -> str:
    """Letters of the patient directions in which the array axes grow, e.g. "LPS"."""
    return "".join(
        (POSITIVE if sign > 0 else NEGATIVE)[patient] for patient, sign in axis_assignment(np.asarray(affine))
    )


def reorient(array: np.ndarray, geometry: Geometry, orientation: str) -> tuple[np.ndarray, Geometry]:
    """Flip and permute the first three axes of `array` so that they grow along `orientation`; nothing is resampled.

    Args:
        array: (I, J, K, ...) in the grid of `geometry`.
        orientation: one of `ALL_ORIENTATIONS`, e.g. "RAS".

    Returns:
        The array, a view where numpy allows one, and its geometry: every voxel keeps its place in the patient.

    Raises:
        ValueError: unknown orientation, or an array of fewer than three axes.
    """
    if orientation not in ALL_ORIENTATIONS:
        raise ValueError(f"unknown orientation {orientation!r}: use three letters, one each of R/L, A/P and S/I")
    if array.ndim < 3:
        raise ValueError(f"reorient needs at least three axes, got shape {array.shape}")
    wanted = [
        (POSITIVE.index(letter), 1) if letter in POSITIVE else (NEGATIVE.index(letter), -1) for letter in orientation
    ]
    current = axis_assignment(geometry.affine)
    source_axis = [[patient for patient, _ in current].index(patient) for patient, _ in wanted]
    transform = np.zeros((4, 4))
    transform[3, 3] = 1
    flipped = []
    for new_axis, (old_axis, (_, sign)) in enumerate(zip(source_axis, wanted, strict=True)):
        if current[old_axis][1] == sign:
            transform[old_axis, new_axis] = 1
        else:
            transform[old_axis, new_axis] = -1
            transform[old_axis, 3] = array.shape[old_axis] - 1
            flipped.append(new_axis)
    result = np.flip(np.transpose(array, (*source_axis, *range(3, array.ndim))), tuple(flipped))
    moved = Geometry(
        geometry.affine @ transform,
        source_format=geometry.source_format,
        is_physical=geometry.is_physical,
        header=geometry.header,
    )
    return result, moved


def lps_to_ras(affine: np.ndarray) -> np.ndarray:
    """Affine of DICOM, NRRD or ITK (LPS+) to RAS+; the same step leads back."""
    return np.diag((-1.0, -1.0, 1.0, 1.0)) @ np.asarray(affine, dtype=np.float64)


def grid_distance(first: Geometry, second: Geometry, shape: tuple[int, ...]) -> float:
    """How far apart the two grids place the same index, at most over a volume of `shape`, in voxels of `first`."""
    corners = np.array(list(itertools.product(*((0, extent - 1) for extent in shape[:3]))), dtype=np.float64)
    shift_mm = corners @ (second.affine - first.affine)[:3, :3].T + (second.affine - first.affine)[:3, 3]
    return float(np.abs(np.linalg.solve(first.affine[:3, :3], shift_mm.T)).max())


def align(
    array: np.ndarray,
    geometry: Geometry,
    target: Geometry,
    shape: tuple[int, ...],
    *,
    tolerance_vox: float = 0.1,
    resample: bool = False,
) -> tuple[np.ndarray, bool]:
    """A label map in the grid of another image: every label at the same place in the patient.

    Axes stored in another order or direction are turned back, which changes no voxel. Where the place of one of the two
    is not known (`is_physical` False, or directions assumed), arrays of the same shape are taken to be in one grid.

    Args:
        array: (I, J, K) in the grid of `geometry`.
        target, shape: grid and first three extents wanted.
        tolerance_vox: by how much places may differ, in voxels of `target`.
        resample: take the nearest label where the grids differ in earnest; 0 outside of `array`.

    Returns:
        (array of `shape`, whether it was resampled).

    Raises:
        GeometryError: other grids and no `resample`, or grids that do not overlap; the message says how far off.
    """
    shape = tuple(shape[:3])
    physical = geometry.is_physical and target.is_physical
    known = physical and not any(grid.header.get("orientation_assumed") for grid in (geometry, target))
    if not physical and array.shape[:3] != shape:
        raise GeometryError(f"shape {array.shape} does not fit {shape}")
    if not physical:
        return array, False
    # Where voxel (i, j, k) of `target` lies among the voxels of `array`.
    there = np.linalg.inv(geometry.affine) @ target.affine
    source = _turned(there, array.shape, shape, tolerance_vox)
    if source is not None:
        order, flips = source
        return np.flip(np.transpose(array, (*order, *range(3, array.ndim))), flips), False
    if not known and array.shape[:3] == shape and np.allclose(geometry.spacing, target.spacing, rtol=0.01):
        return array, False
    if not resample:
        if array.shape[:3] == shape:
            away = grid_distance(target, geometry, shape)
            raise GeometryError(f"it lies up to {away:.1f} voxels away from there in the patient; resample it")
        raise GeometryError(f"shape {array.shape} is no turned {shape} of the same place in the patient; resample it")
    from scipy.ndimage import affine_transform

    corners = np.array(list(itertools.product(*((0, extent - 1) for extent in shape))), dtype=np.float64)
    places = corners @ there[:3, :3].T + there[:3, 3]
    if (places.max(0) < -0.5).any() or (places.min(0) > np.array(array.shape[:3]) - 0.5).any():
        raise GeometryError("the two grids do not overlap anywhere in the patient")
    moved = affine_transform(array, there[:3, :3], there[:3, 3], output_shape=shape, order=0, mode="constant")
    return moved, True


def _turned(there: np.ndarray, held: tuple[int, ...], shape: tuple[int, ...], tolerance_vox: float):
    """(axes of the source in the order of the target, target axes to flip) if that is all the difference, else None."""
    linear = np.rint(there[:3, :3])
    if not ((np.abs(linear).sum(0) == 1).all() and (np.abs(linear).sum(1) == 1).all()):
        return None
    order = [int(np.argmax(np.abs(linear[:, axis]))) for axis in range(3)]
    if tuple(held[axis] for axis in order) != tuple(shape):
        return None
    flips = [axis for axis in range(3) if linear[order[axis], axis] < 0]
    exact = np.eye(4)
    exact[:3, :3] = linear
    for axis in flips:
        exact[order[axis], 3] = held[order[axis]] - 1
    corners = np.array(list(itertools.product(*((0, extent - 1) for extent in shape))), dtype=np.float64)
    error = corners @ (there - exact)[:3, :3].T + (there - exact)[:3, 3]
    return (order, flips) if np.abs(error).max() <= tolerance_vox else None

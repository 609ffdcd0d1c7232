"""Axis arithmetic on voxel grids, pure numpy. Patient space is RAS+ in millimetres."""

from __future__ import annotations

import itertools

import numpy as np

from unimed.structures import Geometry

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
    result = np.flip(np.transpose(array, (*source_axis, *range(3, array.ndim))), flipped)
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

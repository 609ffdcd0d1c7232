"""Planes in space to one volume, where they are one complete, evenly spaced, aligned stack or are resampled to one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from unimed.io.limits import ReadError, refuse_too_large

#: Directions that differ by less are the same, as cosine: half a degree.
SAME_DIRECTION = np.cos(np.radians(0.5))
#: Slices may lie so far from their even place, as a fraction of their distance; headers round to a tenth of a mm.
UNEVEN = 0.03
ROUNDING_MM = 0.06
#: Origins may lie so far beside the straight line through the stack, in pixels.
ASIDE_PX = 0.25
IRREGULAR = ("refuse", "resample")
REMEDY = 'export the series again, or take irregular="resample" (--irregular resample)'


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice and where it lies, LPS in mm.

    `along_columns` leads from one column to the next, `along_rows` from one row to the next. `load` gives the values
    (rows, columns). `tags` are what may tell phases apart. `stated_gap_mm` and `thickness_mm` are the header's.
    """

    name: str
    origin: np.ndarray
    along_columns: np.ndarray
    along_rows: np.ndarray
    shape: tuple[int, int]
    load: Callable[[], np.ndarray] = field(repr=False)
    tags: Mapping[str, Any] = field(default_factory=dict)
    thickness_mm: float | None = None
    stated_gap_mm: float | None = None
    number: int | None = None
    expected: int | None = None

    @property
    def normal(self) -> np.ndarray:
        normal = np.cross(self.along_columns, self.along_rows)
        return normal / np.linalg.norm(normal)


@dataclass(frozen=True, eq=False)
class Stack:
    """`array` is (columns, rows, slices); `affine` LPS; `planes` in the order of the slices, none where resampled."""

    array: np.ndarray
    affine: np.ndarray
    planes: tuple[Plane, ...]
    steps: tuple[str, ...]


def make_plane(name: str, orientation, position, spacing, **options) -> Plane:
    """A plane from the three attributes that place it.

    Args:
        orientation: six cosines, direction of a row and of a column. position: of the first pixel in mm.
        spacing: between rows, then between columns, in mm.

    Raises:
        ReadError: no unit vectors, not perpendicular, spacing not positive, numbers missing or not finite.
    """

    def numbers(what: str, values, count: int) -> np.ndarray:
        try:
            found = np.array([float(v) for v in values], dtype=np.float64)
        except (TypeError, ValueError):
            found = np.array([])
        if found.shape != (count,) or not np.isfinite(found).all():
            raise ReadError(f"{name}: {what} must hold {count} finite numbers, found {values!r}")
        return found

    row, column = numbers("ImageOrientationPatient", orientation, 6).reshape(2, 3)
    origin = numbers("ImagePositionPatient", position, 3)
    between = numbers("PixelSpacing", spacing, 2)
    if (between <= 0).any():
        raise ReadError(f"{name}: PixelSpacing is {between.tolist()}, but a spacing is positive")
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(row @ column) > 0.01:
        raise ReadError(
            f"{name}: ImageOrientationPatient {[round(float(v), 4) for v in (*row, *column)]} "
            "is no pair of perpendicular unit vectors; repair the header before use"
        )
    # Headers round their cosines: what is left of that would look like a sheared grid.
    row = row / lengths[0]
    column = column - row * (row @ column)
    column = column / np.linalg.norm(column)
    return Plane(name, origin, row * between[1], column * between[0], **options)


def stack(planes: Sequence[Plane], where: str, irregular: str = "refuse") -> Stack:
    """One volume of `planes`, in any order.

    Raises:
        ReadError: with "refuse", whatever keeps the planes from being one regular stack, with file and numbers; with
            "resample", planes that are not parallel, or that lie at one place and differ.
        ValueError: unknown `irregular`.
    """
    if irregular not in IRREGULAR:
        raise ValueError(f"unknown irregular {irregular!r}; known are {', '.join(IRREGULAR)}")
    reference = _commonest(planes)
    _refuse_other_directions(planes, reference)
    normal = reference.normal
    planes = sorted(planes, key=lambda plane: float(plane.origin @ normal))
    refuse_too_large(where, (len(planes), *reference.shape), 4)
    problem = _problem(planes, reference, where)
    if problem:
        if irregular == "refuse":
            raise ReadError(f"{problem}; {REMEDY}")
        return _resampled(planes, reference, where, problem)
    step, steps = _step(planes, reference)
    if irregular == "resample" and step @ normal < (1 - 1e-6) * np.linalg.norm(step):
        return _resampled(planes, reference, where, steps[-1])
    affine = np.eye(4)
    affine[:3] = np.column_stack((reference.along_columns, reference.along_rows, step, planes[0].origin))
    steps = [*steps, *_completeness(planes, float(step @ normal))]
    for note in steps:
        if note.endswith("!"):
            warnings.warn(f"{where}: {note[:-1]}", stacklevel=2)
    array = np.stack([plane.load().T for plane in planes], axis=-1)
    return Stack(array, affine, tuple(planes), tuple(note.removesuffix("!") for note in steps))


def _commonest(planes: Sequence[Plane]) -> Plane:
    """A plane of the commonest orientation, spacing and size: the odd ones out are named, not the many."""

    def key(plane: Plane):
        rounded = np.round(np.concatenate((plane.along_columns, plane.along_rows)), 3) + 0.0
        return (*rounded.tolist(), *plane.shape)

    most = Counter(key(plane) for plane in planes).most_common(1)[0][0]
    return next(plane for plane in planes if key(plane) == most)


def _refuse_other_directions(planes: Sequence[Plane], reference: Plane) -> None:
    for plane in planes:
        if abs(plane.normal @ reference.normal) < SAME_DIRECTION:
            angle = np.degrees(np.arccos(min(1.0, abs(float(plane.normal @ reference.normal)))))
            raise ReadError(
                f"{plane.name}: the slice is tilted by {angle:.1f} degrees against {_short(reference.name)}; "
                "slices of different orientation are no volume, move it out of the folder"
            )


def _problem(planes: Sequence[Plane], reference: Plane, where: str) -> str | None:
    """What is wrong with sorted, parallel planes, or None."""
    for plane in planes:
        if plane.shape != reference.shape:
            return f"{plane.name}: the slice has {plane.shape} pixels, the others {reference.shape}"
        spacing, usual = (np.linalg.norm((p.along_columns, p.along_rows), axis=1) for p in (plane, reference))
        if np.abs(spacing / usual - 1).max() * max(plane.shape) > ASIDE_PX:
            return f"{plane.name}: pixel spacing {spacing.round(5).tolist()} mm, the others {usual.round(5).tolist()}"
        far = (plane.along_columns - reference.along_columns) * (plane.shape[1] - 1)
        far = np.abs(far) + np.abs((plane.along_rows - reference.along_rows) * (plane.shape[0] - 1))
        turn = min(
            float(plane.along_columns @ reference.along_columns / (spacing[0] * usual[0])),
            float(plane.along_rows @ reference.along_rows / (spacing[1] * usual[1])),
        )
        if turn < SAME_DIRECTION:
            return f"{plane.name}: the slice is turned within its plane against {_short(reference.name)}"
        if np.linalg.norm(far) > 2 * ASIDE_PX * usual.min():
            angle = np.degrees(np.arccos(min(1.0, float(plane.normal @ reference.normal))))
            return f"{plane.name}: the slice is tilted by {angle:.2f} degrees against {_short(reference.name)}"
    if len(planes) < 2:
        return None
    return _uneven(planes, reference, where) or _not_straight(planes, reference)


def _places(planes: Sequence[Plane], reference: Plane) -> np.ndarray:
    return np.array([float(plane.origin @ reference.normal) for plane in planes])


def _uneven(planes: Sequence[Plane], reference: Plane, where: str) -> str | None:
    places = _places(planes, reference)
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    at = int(np.argmin(gaps))
    if gaps[at] < 1e-3 or gaps[at] < 0.01 * usual:
        two = f"{planes[at].name} and {_short(planes[at + 1].name)}"
        return f"{two}: two slices lie at the same place ({places[at]:.3f} mm)"
    even = places[0] + np.arange(len(places)) * (places[-1] - places[0]) / (len(places) - 1)
    # A line through all, so that the rounding of a single place does not tilt it.
    if len(places) > 2:
        even = np.polyval(np.polyfit(np.arange(len(places)), places, 1), np.arange(len(places)))
    allowed = max(UNEVEN * usual, min(ROUNDING_MM, 0.1 * usual))
    if np.abs(places - even).max() <= allowed and np.abs(gaps - usual).max() <= 2 * allowed:
        return None
    at = int(np.argmax(np.abs(gaps - usual)))
    text = f"{where}: slices are {usual:.3f} mm apart but once {gaps[at]:.3f} mm"
    between = f"between {_short(planes[at].name)} and {_short(planes[at + 1].name)}"
    if gaps[at] > 1.5 * usual:
        return f"{text}: a slice is missing {between}"
    return f"{text}, {between}: they are not evenly spaced"


def _short(name: str) -> str:
    return PurePath(name).name


def _not_straight(planes: Sequence[Plane], reference: Plane) -> str | None:
    origins = np.array([plane.origin for plane in planes])
    counted = np.arange(len(planes))
    aside = np.zeros(len(planes))
    for along in (reference.along_columns, reference.along_rows):
        drift = origins @ along / float(along @ along)  # in pixels
        line = np.polyval(np.polyfit(counted, drift, 1), counted) if len(planes) > 2 else drift
        aside = np.maximum(aside, np.abs(drift - line))
    at = int(np.argmax(aside))
    if aside[at] <= ASIDE_PX:
        return None
    return f"{planes[at].name}: the slice lies {aside[at]:.1f} pixels beside the line of the others"


def _step(planes: Sequence[Plane], reference: Plane) -> tuple[np.ndarray, list[str]]:
    """From slice to slice, and what is to be said of it."""
    normal, steps = reference.normal, []
    if len(planes) == 1:
        plane = planes[0]
        gap = plane.stated_gap_mm or plane.thickness_mm
        if not gap:
            steps.append("a single slice without SliceThickness: 1 mm is taken")
        return normal * abs(gap or 1.0), steps
    step = (planes[-1].origin - planes[0].origin) / (len(planes) - 1)
    gaps = np.diff(_places(planes, reference))
    if gaps.max() - gaps.min() > max(2e-3, 1e-3 * gaps.mean()):
        steps.append(f"slice gaps vary from {gaps.min():.3f} to {gaps.max():.3f} mm; their mean is taken!")
    beside = step - normal * (step @ normal)
    pixel = min(np.linalg.norm(reference.along_columns), np.linalg.norm(reference.along_rows))
    if np.linalg.norm(beside) * (len(planes) - 1) <= 0.1 * pixel:
        return normal * (step @ normal), steps  # what is left is rounding
    angle = np.degrees(np.arctan2(np.linalg.norm(beside), step @ normal))
    steps.append(f"sheared grid: slices shift along their plane, as with a gantry tilt of {angle:.1f} degrees")
    return step, steps


def _completeness(planes: Sequence[Plane], gap_mm: float) -> list[str]:
    """What the headers say about slices that are not here, which their places cannot show. "!" marks a warning."""
    steps = []
    stated = planes[0].stated_gap_mm
    if len(planes) > 1 and stated and abs(abs(stated) / gap_mm - 1) > 0.05:
        steps.append(
            f"the header states {abs(stated):g} mm between slices, their places {gap_mm:.3f} mm, which are taken!"
        )
    expected = planes[0].expected
    if expected and expected > len(planes):
        steps.append(f"the header counts {expected} images, {len(planes)} are here: slices at an end may be missing!")
    numbers = sorted(plane.number for plane in planes if plane.number is not None)
    if len(numbers) == len(planes) > 1 and len(set(numbers)) == len(numbers):
        if numbers[-1] - numbers[0] + 1 != len(numbers):
            steps.append(
                f"instance numbers {numbers[0]} to {numbers[-1]} of {len(numbers)} slices are not consecutive!"
            )
        elif numbers[0] > 1:
            steps.append(f"instance numbers begin at {numbers[0]}: slices before may be missing!")
    return steps


def _resampled(planes: Sequence[Plane], reference: Plane, where: str, problem: str) -> Stack:
    """Parallel planes in a regular, perpendicular grid: linear within slices and between them.

    The grid has the pixel spacing of the commonest slice, covers all slices, and its slices lie the median gap apart.
    """
    # Results keep this note, and folders tell of users and patients.
    reason = problem.removeprefix(f"{where}: ")
    for plane in planes:
        reason = reason.replace(plane.name, _short(plane.name))
    planes = _without_copies(planes, reference)
    normal = reference.normal
    places = _places(planes, reference)
    gaps = np.diff(places)
    gap = float(np.median(gaps)) if len(gaps) else abs(reference.stated_gap_mm or reference.thickness_mm or 1.0)
    count = int(np.rint((places[-1] - places[0]) / gap)) + 1
    gap = (places[-1] - places[0]) / (count - 1) if count > 1 else gap
    sides = [np.array([plane.shape[1], plane.shape[0]]) for plane in planes]
    axes = np.stack((reference.along_columns, reference.along_rows))
    to_pixels = axes / np.sum(axes**2, axis=1, keepdims=True)
    corners = []
    for plane, (columns, rows) in zip(planes, sides, strict=True):
        for i, j in ((0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)):
            place = plane.origin + i * plane.along_columns + j * plane.along_rows
            corners.append(to_pixels @ (place - reference.origin))
    low = np.floor(np.min(corners, axis=0) + 1e-3).astype(int)
    high = np.ceil(np.max(corners, axis=0) - 1e-3).astype(int)
    columns, rows = (high - low + 1).tolist()
    refuse_too_large(where, (columns, rows, count), 4)
    origin = reference.origin + low @ axes + normal * (places[0] - reference.origin @ normal)

    def flat(plane: Plane) -> np.ndarray:
        return _in_plane(plane, origin + normal * ((plane.origin - origin) @ normal), axes, (rows, columns))

    volume = np.empty((columns, rows, count), np.float32)
    held: dict[int, np.ndarray] = {}
    for number in range(count):
        place = places[0] + number * gap
        after = min(int(np.searchsorted(places, place - 1e-6)), len(places) - 1)
        before = after if after == 0 or places[after] - place < 1e-6 else after - 1
        held = {k: held[k] if k in held else flat(planes[k]) for k in {before, after}}
        weight = 0.0 if before == after else (place - places[before]) / (places[after] - places[before])
        volume[..., number] = (held[before] * (1 - weight) + held[after] * weight).T
    affine = np.eye(4)
    affine[:3] = np.column_stack((*axes, normal * gap, origin))
    note = f"resampled from {len(planes)} slices to {count}, {gap:.3f} mm apart, because: {reason}"
    return Stack(volume, affine, (), (note,))


def _without_copies(planes: Sequence[Plane], reference: Plane) -> list[Plane]:
    kept: list[Plane] = []
    for plane in planes:
        if kept and abs(float((plane.origin - kept[-1].origin) @ reference.normal)) < 1e-3:
            if not np.array_equal(plane.load(), kept[-1].load()):
                raise ReadError(f"{kept[-1].name} and {plane.name}: two different slices at the same place; keep one")
        else:
            kept.append(plane)
    return kept


def _in_plane(plane: Plane, origin: np.ndarray, axes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values of a plane at the pixels of another grid in the same plane; its lowest value outside."""
    values = plane.load().astype(np.float32)
    own = np.stack((plane.along_columns, plane.along_rows))
    back = own / np.sum(own**2, axis=1, keepdims=True)
    shift, linear = back @ (origin - plane.origin), back @ axes.T  # (column, row) of the grid -> of the plane
    whole = np.rint(shift)
    if np.allclose(linear, np.eye(2), atol=1e-5) and np.allclose(shift, whole, atol=1e-3):
        result = np.full(shape, values.min(), np.float32)
        column, row = (-whole).astype(int)
        below, right = row + values.shape[0], column + values.shape[1]
        if row >= 0 and column >= 0 and below <= shape[0] and right <= shape[1]:
            result[row:below, column:right] = values
            return result
    from scipy.ndimage import affine_transform

    # (row, column) order for scipy; a hair of slack at the border, which rounding would put outside.
    matrix, offset = linear[::-1, ::-1], shift[::-1]
    padded = np.pad(values, 1, mode="edge")
    return affine_transform(padded, matrix, offset + 1, output_shape=shape, order=1, cval=float(values.min()))

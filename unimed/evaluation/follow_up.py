"""Two studies of one patient: which lesion is which, how each changed, and what RECIST 1.1 calls it.

Research use only: target lesions are chosen by size alone, and response criteria want a reader (Eisenhauer et al.,
Eur J Cancer 45:228, 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unimed.geometry import Geometry
from unimed.io.codes import Coding
from unimed.io.findings import coding_of
from unimed.io.measurements import Measurements, measure
from unimed.structures import Region

LYMPH_NODE = "59441001"
#: Least sizes of target lesions and of pathological nodes, in mm; RECIST 1.1.
TARGET_LONG_MM, TARGET_NODE_MM, NORMAL_NODE_MM = 10.0, 15.0, 10.0
MOST_TARGETS, MOST_PER_ORGAN = 5, 2


@dataclass(frozen=True, eq=False)
class Lesion:
    """A connected object of a study; `center_mm` is in patient millimetres (RAS), `tracking` (identifier, UID)."""

    number: int
    phrase: str
    mask: np.ndarray
    center_mm: np.ndarray
    size: Measurements
    coding: Coding
    tracking: tuple[str, str] = ("", "")

    @property
    def is_node(self) -> bool:
        codes = (self.coding.type, self.coding.region)
        return any(code is not None and code.value == LYMPH_NODE for code in codes)

    @property
    def organ(self) -> str:
        """What decides how many targets an organ may have."""
        return (self.coding.region or self.coding.type).value

    @property
    def diameter_mm(self) -> float:
        """What RECIST sums: the short axis of nodes, the long axis of all else."""
        return self.size.short_axis_mm if self.is_node else self.size.long_axis_mm


@dataclass(frozen=True, eq=False)
class Change:
    """A lesion in both studies, or in one: `kind` is "matched", "new", "vanished", "merged" or "split"."""

    kind: str
    baseline: Lesion | None
    follow_up: Lesion | None
    distance_mm: float | None = None
    with_number: int | None = None

    def percent(self, name: str) -> float | None:
        """Change of `volume_ml`, `long_axis_mm` or `short_axis_mm` in percent of the baseline."""
        if self.baseline is None or self.follow_up is None:
            return None
        before, after = (getattr(lesion.size, name) for lesion in (self.baseline, self.follow_up))
        return 100 * (after - before) / before if before else None


@dataclass(frozen=True)
class Response:
    """RECIST 1.1: `category` is "CR", "PR", "SD", "PD" or "NE" (nothing to judge by), `reasons` say why.

    `targets` are numbers of baseline lesions; sums are in mm, `change_percent` is against the baseline.
    """

    category: str
    baseline_sum_mm: float
    follow_up_sum_mm: float
    nadir_mm: float
    change_percent: float | None
    targets: tuple[int, ...]
    reasons: tuple[str, ...] = field(default=())


def lesions_of(
    regions: Sequence[Region],
    geometry: Geometry,
    *,
    tracking: Sequence[tuple[str, str]] = (),
    least_voxels: int = 3,
    values: np.ndarray | None = None,
) -> list[Lesion]:
    """The connected parts (26 neighbours) of masks (I, J, K), in the order of the regions, large ones first.

    Args:
        tracking: (identifier, UID) per region; further parts of one region get ones of their own.
        least_voxels: smaller parts are specks and left out.
    """
    from scipy import ndimage

    from unimed.io.findings import stable_uid

    found = []
    for place, region in enumerate(regions):
        if region.mask is None:
            continue
        parts, count = ndimage.label(region.mask, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        kept = [part for part in np.argsort(-sizes[1:], kind="stable") + 1 if sizes[part] >= least_voxels]
        for order, part in enumerate(kept, 1):
            mask = parts == part
            middle = np.argwhere(mask).mean(0)
            name, uid = tracking[place] if tracking else ("", "")
            if order > 1 and uid:
                name, uid = f"{name} part {order}", stable_uid("part", uid, order)
            found.append(
                Lesion(
                    len(found) + 1, region.phrase, mask, geometry.affine[:3, :3] @ middle + geometry.affine[:3, 3],
                    measure(mask, geometry, values), coding_of(region.phrase, region.phrase), (name, uid),
                )
            )  # fmt: skip
    return found


def match_lesions(
    baseline: Sequence[Lesion],
    follow_up: Sequence[Lesion],
    geometries: tuple[Geometry, Geometry],
    motion: np.ndarray | None = None,
    *,
    max_distance_mm: float = 15.0,
) -> list[Change]:
    """Which lesion of one study is which of the other, one to one, so that all distances together are least.

    Lesions may lie `max_distance_mm` apart, or half of the longer one; phrases that are coded as other organs never
    match. One that has grown into a matched lesion is "merged", one that came off it "split": neither is new or gone.

    Args:
        motion: 4x4 from RAS millimetres of the baseline to those of the follow-up; None for the same coordinates.
    """
    from scipy.optimize import linear_sum_assignment

    motion = np.eye(4) if motion is None else motion
    moved = [motion[:3, :3] @ lesion.center_mm + motion[:3, 3] for lesion in baseline]
    cost = np.full((len(baseline), len(follow_up)), 1e6)
    distances = np.zeros_like(cost)
    for i, one in enumerate(baseline):
        for j, other in enumerate(follow_up):
            distances[i, j] = away = float(np.linalg.norm(moved[i] - other.center_mm))
            reach = max(max_distance_mm, one.size.long_axis_mm / 2, other.size.long_axis_mm / 2)
            if away <= reach and one.organ == other.organ:
                cost[i, j] = away
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost), strict=True) if cost[i, j] < 1e6]
    forward, backward = dict(pairs), {j: i for i, j in pairs}
    changes = [Change("matched", baseline[i], follow_up[j], distances[i, j]) for i, j in pairs]
    for i, lesion in enumerate(baseline):
        if i not in forward:
            into = _overlapping(lesion, geometries[0], motion, [follow_up[j] for j in backward], geometries[1])
            kind = "merged" if into is not None else "vanished"
            changes.append(Change(kind, lesion, None, with_number=None if into is None else into.number))
    back = np.linalg.inv(motion)
    for j, lesion in enumerate(follow_up):
        if j not in backward:
            off = _overlapping(lesion, geometries[1], back, [baseline[i] for i in forward], geometries[0])
            kind = "split" if off is not None else "new"
            changes.append(Change(kind, None, lesion, with_number=None if off is None else off.number))
    return changes


def _overlapping(lesion: Lesion, geometry: Geometry, motion: np.ndarray, others, other_geometry: Geometry):
    """The lesion of another study that covers at least half of this one, or None."""
    indices = np.argwhere(lesion.mask)
    there = np.linalg.inv(other_geometry.affine) @ motion @ geometry.affine
    places = np.rint(indices @ there[:3, :3].T + there[:3, 3]).astype(int)
    for other in others:
        inside = ((places >= 0) & (places < other.mask.shape)).all(1)
        if other.mask[tuple(places[inside].T)].sum() >= 0.5 * len(places):
            return other
    return None


def recist(changes: Sequence[Change], nadir_mm: float | None = None) -> Response:
    """The response by RECIST 1.1 of targets chosen by size: the five largest, two per organ.

    Args:
        nadir_mm: smallest sum of diameters since treatment began, where earlier studies had a smaller one.
    """
    measurable = [
        c for c in changes if c.baseline is not None and c.kind in ("matched", "vanished")
        and (c.baseline.size.short_axis_mm >= TARGET_NODE_MM if c.baseline.is_node
             else c.baseline.size.long_axis_mm >= TARGET_LONG_MM)
    ]  # fmt: skip
    targets, per_organ = [], {}
    for change in sorted(measurable, key=lambda c: -c.baseline.diameter_mm):
        organ = change.baseline.organ
        if len(targets) < MOST_TARGETS and per_organ.get(organ, 0) < MOST_PER_ORGAN:
            targets.append(change)
            per_organ[organ] = per_organ.get(organ, 0) + 1
    before = sum(c.baseline.diameter_mm for c in targets)
    after = sum(c.follow_up.diameter_mm for c in targets if c.follow_up is not None)
    nadir = before if nadir_mm is None else min(before, nadir_mm)
    change = 100 * (after - before) / before if before else None
    new = [c.follow_up.number for c in changes if c.kind == "new"]
    rest = [c for c in changes if c.baseline is not None and c not in targets]
    gone = all(_is_gone(c) for c in targets) and all(_is_gone(c) for c in rest)
    reasons, category = [], "SD"
    if new:
        category = "PD"
        reasons.append(f"new lesions: {', '.join(map(str, new))}")
    if targets and after >= 1.2 * nadir and after - nadir >= 5:
        category = "PD"
        fraction = f"{100 * (after - nadir) / nadir:.0f} % and " if nadir else ""
        reasons.append(f"sum {after:.1f} mm, {fraction}{after - nadir:.1f} mm over the nadir")
    if category != "PD":
        if not targets and not rest:
            category = "NE"
            reasons.append("no lesion at baseline")
        elif gone:
            category = "CR"
            reasons.append("no lesion is left, nodes are of normal size")
        elif not targets:
            category = "NE"
            reasons.append("no measurable lesion at baseline")
        elif change is not None and change <= -30:
            category = "PR"
            reasons.append(f"sum {change:.0f} % of baseline")
        else:
            reasons.append(f"sum {change:+.0f} % of baseline")
    return Response(category, before, after, nadir, change, tuple(c.baseline.number for c in targets), tuple(reasons))


def _is_gone(change: Change) -> bool:
    if change.kind == "merged":
        return False
    if change.follow_up is None:
        return True
    return change.baseline.is_node and change.follow_up.size.short_axis_mm < NORMAL_NODE_MM


def rows_of(changes: Sequence[Change]) -> list[dict]:
    """Plain rows for JSON and tables, one per change."""
    rows = []
    for change in changes:
        lesion = change.baseline or change.follow_up
        row = {"kind": change.kind, "phrase": lesion.phrase, "tracking_uid": lesion.tracking[1]}
        for name, one in (("baseline", change.baseline), ("follow_up", change.follow_up)):
            row[name] = None if one is None else one.number
            for key, value in (("volume_ml", "volume_ml"), ("long_axis_mm", "long_axis_mm"), ("short_axis_mm",) * 2):
                row[f"{key}_{name}"] = None if one is None else round(getattr(one.size, value), 3)
        for key in ("volume_ml", "long_axis_mm", "short_axis_mm"):
            value = change.percent(key)
            row[f"{key}_percent"] = None if value is None else round(value, 1)
        row["distance_mm"] = None if change.distance_mm is None else round(change.distance_mm, 2)
        row["with"] = change.with_number
        rows.append(row)
    return rows

"""Slices of one series that lie at the same places: phases, echoes, b-values; told apart by their headers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unimed.io.limits import ReadError
from unimed.io.slice_stack import SAME_DIRECTION, Plane

#: Slices closer than this lie at one place.
SAME_PLACE_MM = 0.01
#: What may tell phases apart, in the order in which it is tried; then pairs of them.
TAGS = (
    "StackID", "TemporalPositionIdentifier", "TemporalPositionIndex", "TemporalPositionTimeOffset", "TriggerTime",
    "NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase", "EchoTime", "EffectiveEchoTime", "EchoNumbers",
    "DiffusionBValue", "DiffusionGradientOrientation", "FlipAngle", "InversionTime", "KVP", "ImageType", "FrameType",
    "ComplexImageComponent", "FrameReferenceTime", "AcquisitionNumber", "FrameAcquisitionNumber", "AcquisitionTime",
    "AcquisitionDateTime", "ContentTime",
)  # fmt: skip


def choose_planes(planes: Sequence[Plane], phase, where: str) -> tuple[list[Plane], tuple[str, ...]]:
    """The planes of one phase, and what was done, in words.

    Args:
        phase: number in the list that the error message gives, or the value that the message names.

    Raises:
        ReadError: several phases and none chosen (they are listed), or one that is not there.
    """
    names, groups = phases(planes)
    if len(groups) == 1:
        if phase not in (None, 0, "0", "all"):
            raise ReadError(f"{where}: there is only one phase, number 0; phase {phase!r} is not there")
        return list(planes), ()
    label = [", ".join(f"{n} {_text(v)}" for n, v in zip(names, key, strict=True)) for key in groups]
    chosen = list(groups.values())
    listed = "; ".join(f"{k}: {name} ({len(c)} slices)" for k, (name, c) in enumerate(zip(label, chosen, strict=True)))
    if phase is None:
        raise ReadError(f"{where}: {len(groups)} phases, choose one with phase=NUMBER (--phase): {listed}")
    wanted = [k for k, name in enumerate(label) if str(phase) in (name, name.partition(" ")[2])]
    if str(phase).isdigit() and int(phase) < len(groups):
        wanted = [int(phase)]
    if len(wanted) != 1:
        raise ReadError(f"{where}: phase {phase!r} is not there; there are {listed}")
    return chosen[wanted[0]], (f"phase {wanted[0]} of {len(groups)} taken: {label[wanted[0]]}",)


def _text(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def phases(planes: Sequence[Plane]) -> tuple[tuple[str, ...], dict[tuple, list[Plane]]]:
    """(names of the attributes that tell phases apart, their values -> planes); one group where there are no phases.

    A grouping counts if there are as many groups as slices at the fullest place, if no group has two slices at one
    place, and if the smallest group is at least half as large as the largest: else a single copy would be a "phase".
    """
    whole = ((), {(): list(planes)})
    most = _most_at_one_place(planes)
    stacks = _by_orientation(planes)
    if most < 2 and len(stacks) < 2:
        return whole
    if len(stacks) > 1 and min(map(len, stacks.values())) >= max(2, 0.2 * len(planes)):
        return ("orientation",), stacks
    if most < 2:
        return whole
    held = [name for name in TAGS if all(name in plane.tags for plane in planes)]
    held = [name for name in held if len({_text(plane.tags[name]) for plane in planes}) > 1]
    for names in itertools.chain(((name,) for name in held), itertools.combinations(held, 2)):
        groups = defaultdict(list)
        for plane in planes:
            groups[tuple(plane.tags[name] for name in names)].append(plane)
        sizes = [len(group) for group in groups.values()]
        even = len(groups) == most and min(sizes) * 2 >= max(sizes)
        if even and all(_most_at_one_place(group) == 1 for group in groups.values()):
            return names, dict(sorted(groups.items(), key=lambda item: [_sortable(v) for v in item[0]]))
    return whole


def _sortable(value):
    try:
        return (0, float(value), "")
    except (TypeError, ValueError):
        return (1, 0.0, str(value))


def _most_at_one_place(planes: Sequence[Plane]) -> int:
    most = 1
    for group in _by_orientation(planes).values():
        places = np.sort([float(plane.origin @ group[0].normal) for plane in group])
        run = 1
        for gap in np.diff(places):
            run = run + 1 if gap < SAME_PLACE_MM else 1
            most = max(most, run)
    return most


def _by_orientation(planes: Sequence[Plane]) -> dict[tuple[str], list[Plane]]:
    groups: list[list[Plane]] = []
    for plane in planes:
        for group in groups:
            if abs(float(group[0].normal @ plane.normal)) >= SAME_DIRECTION:
                group.append(plane)
                break
        else:
            groups.append([plane])
    words = ("sagittal", "coronal", "axial")
    named: dict[tuple[str], list[Plane]] = {}
    for number, group in enumerate(groups):
        name = words[int(np.argmax(np.abs(group[0].normal)))]
        named[(name if (name,) not in named else f"{name} {number}",)] = group
    return named

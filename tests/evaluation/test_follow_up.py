"""Lesions of two studies: matching, RECIST 1.1 and its borders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_volumes import grid, turn

from unimed.evaluation.follow_up import lesions_of, match_lesions, recist, rows_of
from unimed.structures import Region

GRID = grid((1, 1, 2), origin=(-40, -40, 0))
SHAPE = (80, 80, 30)


def ball(center, radius_mm, spacing=(1, 1, 2)):
    x, y, z = (((np.arange(n) - c) * s) ** 2 for n, c, s in zip(SHAPE, center, spacing, strict=True))
    return x[:, None, None] + y[:, None] + z <= radius_mm**2


def study(*balls, phrase="liver lesion", geometry=GRID):
    mask = np.zeros(SHAPE, bool)
    for center, radius in balls:
        mask |= ball(center, radius)
    return lesions_of([Region(phrase, mask)], geometry)


def compared(first, second, motion=None, **options):
    return match_lesions(first, second, (GRID, GRID), motion, **options)


A, B, C = (20, 20, 8), (55, 25, 10), (40, 60, 20)


def kinds(changes):
    return sorted(change.kind for change in changes)


def test_parts_become_lesions_largest_first_and_specks_are_left_out():
    found = study((A, 6), (B, 9))
    assert [lesion.number for lesion in found] == [1, 2]
    assert found[0].size.volume_mm3 > found[1].size.volume_mm3 > 0
    assert found[0].center_mm == pytest.approx([55 - 40, 25 - 40, 20], abs=0.3)
    assert len(lesions_of([Region("x", np.eye(4, dtype=bool)[..., None][:2])], GRID)) == 0
    tracked = lesions_of([Region("x", ball(A, 6) | ball(B, 9))], GRID, tracking=[("x", "1.2.3")])
    assert tracked[0].tracking == ("x", "1.2.3") and tracked[1].tracking[1] not in ("", "1.2.3")


def test_new_and_vanished_and_matched():
    changes = compared(study((A, 6), (B, 9)), study((A, 8), (C, 7)))
    assert kinds(changes) == ["matched", "new", "vanished"]
    matched = next(c for c in changes if c.kind == "matched")
    assert matched.percent("volume_ml") == pytest.approx(100 * ((8 / 6) ** 3 - 1), abs=15)
    assert matched.percent("long_axis_mm") == pytest.approx(100 / 3, abs=6)
    rows = rows_of(changes)
    assert {row["kind"] for row in rows} == {"matched", "new", "vanished"}
    assert next(r for r in rows if r["kind"] == "new")["volume_ml_percent"] is None


@settings(max_examples=5, deadline=None)
@given(st.tuples(*[st.floats(-0.3, 0.3)] * 3), st.tuples(*[st.floats(-30, 30)] * 3), st.permutations(range(3)))
def test_known_motion_and_order_do_not_matter(angles, shift, order):
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn(angles), shift
    moved = grid((1, 1, 2))
    moved = type(GRID)(motion @ GRID.affine, "test")
    balls = [(A, 6), (B, 9), (C, 7)]
    first = study(*balls)
    second = study(*[balls[k] for k in order], geometry=moved)
    changes = match_lesions(first, second, (GRID, moved), motion)
    assert kinds(changes) == ["matched"] * 3
    for change in changes:
        assert change.distance_mm < 1e-6 and abs(change.percent("volume_ml")) < 1e-9


def test_grown_together_and_fallen_apart_are_neither_new_nor_gone():
    apart, together = ((20, 20, 8), 7), ((34, 20, 8), 5)
    joined = ((26, 20, 8), 16)
    changes = compared(study(apart, together), study(joined))
    assert kinds(changes) == ["matched", "merged"] and recist(changes).category != "CR"
    changes = compared(study(joined), study(apart, together))
    assert kinds(changes) == ["matched", "split"] and not any("new" in r for r in recist(changes).reasons)


def test_other_organs_never_match():
    first, second = study((A, 8)), study((A, 8), phrase="lung nodule")
    assert kinds(compared(first, second)) == ["new", "vanished"]


@pytest.mark.parametrize(
    ("before", "after", "category"),
    [
        ([(A, 10)], [(A, 10)], "SD"),
        ([(A, 10)], [(A, 6)], "PR"),
        ([(A, 10)], [], "CR"),
        ([(A, 10)], [(A, 13)], "PD"),
        ([(A, 10)], [(A, 10), (C, 4)], "PD"),
        ([(A, 3)], [(A, 4)], "NE"),
        ([], [], "NE"),
        ([], [(A, 5)], "PD"),
        ([(A, 10), (B, 3)], [(B, 3)], "PR"),  # the target is gone, a small lesion is left
    ],
)
def test_recist_categories(before, after, category):
    response = recist(compared(study(*before), study(*after)))
    assert response.category == category, response


def test_growth_must_be_five_millimetres_too_and_counts_from_the_nadir():
    first, second = study((A, 5.5)), study((A, 7.5))
    assert recist(compared(first, second)).category == "SD"  # a third more, but less than 5 mm
    response = recist(compared(study((A, 10)), study((A, 10))), nadir_mm=8)
    assert response.category == "PD" and response.change_percent == pytest.approx(0)
    assert recist(compared(study((A, 10)), study((A, 10))), nadir_mm=0).category == "PD"


def test_nodes_are_measured_by_their_short_axis():
    first, second = study((A, 9), phrase="lymph node"), study((A, 4.5), phrase="lymph node")
    response = recist(compared(first, second))
    assert response.category == "CR" and response.baseline_sum_mm == pytest.approx(first[0].size.short_axis_mm)
    small = study((A, 6), phrase="lymph node")
    assert recist(compared(small, small)).targets == ()


def test_five_targets_two_per_organ():
    centers = [(12 + 25 * i, 12 + 25 * j, 10) for i in range(3) for j in range(3)]
    livers = study(*[(c, 6 + 0.5 * n) for n, c in enumerate(centers[:4])])
    assert len(recist(compared(livers, livers)).targets) == 2
    many = []
    for n, organ in enumerate(("liver", "lung", "spleen", "pancreas")):
        mask = ball(centers[2 * n], 6) | ball(centers[2 * n + 1], 7)
        many.append(Region(f"{organ} lesion", mask))
    lesions = lesions_of(many, GRID)
    assert len(lesions) == 8 and len(recist(compared(lesions, lesions)).targets) == 5

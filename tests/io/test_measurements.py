import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_volumes import grid, oblique_grids, sheared_grids

from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.io.measurements import measure


def ball(shape, spacing, radius_mm):
    places = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"), -1) * spacing
    return (places**2).sum(-1) <= radius_mm**2


def test_a_bar_measures_what_it_is():
    mask = np.zeros((20, 30, 4), bool)
    mask[2:5, 3:23, 1] = True
    size = measure(mask, grid((0.5, 2, 3)))
    assert size.voxels == 60 and size.volume_mm3 == pytest.approx(60 * 3) and size.slice_index == 1
    # From edge to edge: a bar of 20 pixels of 2 mm is 40 mm long, its diagonal a little more.
    assert 40 <= size.long_axis_mm <= np.hypot(40, 1.5)
    assert 1.0 <= size.short_axis_mm <= 1.6


@pytest.mark.parametrize("geometry", [grid((1, 1, 1)), grid((0.5, 0.8, 2)), *oblique_grids(3)])
def test_a_ball_has_its_diameter_in_any_grid(geometry):
    radius = 12 * max(geometry.spacing[:2])
    mask = ball(tuple(int(2.4 * radius / s) + 3 for s in geometry.spacing), np.array(geometry.spacing), radius)
    size = measure(mask, geometry)
    assert size.long_axis_mm == pytest.approx(2 * radius, rel=0.06)
    assert size.short_axis_mm == pytest.approx(2 * radius, rel=0.08)
    assert size.volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05) or geometry.spacing[2] > radius / 4


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::7])
def test_volume_does_not_depend_on_the_order_of_axes_and_axes_not_on_turns_in_the_plane(orientation):
    mask = np.random.default_rng(0).random((6, 7, 5)) > 0.6
    geometry = grid((0.7, 0.9, 2.5), (0.1, 0.2, 0.3))
    turned, turned_geometry = reorient(mask, geometry, orientation)
    one, other = measure(mask, geometry), measure(turned, turned_geometry)
    assert other.volume_mm3 == pytest.approx(one.volume_mm3)
    if turned.shape[2] == 5:
        assert other.long_axis_mm == pytest.approx(one.long_axis_mm)
        assert other.short_axis_mm == pytest.approx(one.short_axis_mm)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([grid((0.7, 1.3, 2)), *sheared_grids(2)]))
def test_the_long_axis_is_that_of_all_pairs_and_no_chord_across_is_longer(seed, geometry):
    mask = np.random.default_rng(seed).random((6, 5, 3)) > 0.7
    if not mask.any():
        mask[2, 2, 1] = True
    size = measure(mask, geometry)
    longest = 0.0
    for k in range(3):
        points = np.argwhere(mask[:, :, k])
        if len(points):
            ends = (points[:, None] + [(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)]).reshape(-1, 2)
            mm = ends @ geometry.affine[:3, :2].T
            longest = max(longest, np.linalg.norm(mm[:, None] - mm[None], axis=-1).max())
    assert size.long_axis_mm == pytest.approx(longest)
    assert 0 < size.short_axis_mm <= size.long_axis_mm + 1e-9


def test_values_and_empty_masks():
    mask = np.zeros((3, 3), bool)
    empty = measure(mask, Geometry.pixels(), np.ones((3, 3)))
    assert (empty.voxels, empty.long_axis_mm, empty.slice_index, empty.mean) == (0, 0.0, -1, None)
    mask[0, :2] = True
    size = measure(mask, Geometry.pixels(), np.array([[1.0, 3.0, 9], [9, 9, 9], [9, np.nan, 9]]), "[hnsf'U]")
    assert (size.mean, size.deviation, size.unit) == (2.0, 1.0, "[hnsf'U]")
    with pytest.raises(ValueError, match="do not fit"):
        measure(mask, Geometry.pixels(), np.ones((2, 3)))

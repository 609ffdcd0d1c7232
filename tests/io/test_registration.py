import numpy as np
import pytest
from small_volumes import corner_error_vox, grid, sheared_grids, turn

from unimed.geometry import Geometry, GeometryError
from unimed.io.registration import register_rigid

SHAPE, GRID = (48, 44, 20), grid((1.5, 1.5, 3), origin=(-36, -33, -30))


def anatomy(places_mm):
    """Values of a made-up body at RAS places [..., 3]: nothing in it is symmetric."""
    x, y, z = np.moveaxis(places_mm, -1, 0)
    body = (x / 30) ** 2 + (y / 24) ** 2 < 1
    values = np.where(body, 40.0, -900.0)
    for cx, cy, cz, r, v in ((12, 6, 5, 9, 300), (-14, -4, -10, 7, -300), (4, -12, 14, 6, 500), (-8, 10, 0, 5, 200)):
        values = np.where((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < r * r, v, values)
    return values


def scanned(geometry, motion=None, shape=SHAPE):
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    places = indices @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    if motion is not None:
        back = np.linalg.inv(motion)
        places = places @ back[:3, :3].T + back[:3, 3]
    noise = np.random.default_rng(len(shape)).normal(0, 10, shape)
    return (anatomy(places) + noise).astype(np.float32)


@pytest.mark.parametrize(("angles", "shift"), [((0, 0, 0), (4, -3, 5)), ((0.05, -0.03, 0.08), (3, 5, -4))])
def test_a_known_motion_is_found_to_less_than_a_voxel(angles, shift):
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn(angles), shift
    found, score = register_rigid(scanned(GRID), GRID, scanned(GRID, motion), GRID)
    assert corner_error_vox(motion @ GRID.affine, found @ GRID.affine, SHAPE) < 1.0
    assert score > 0.1


def test_other_orders_of_axes_make_no_difference_and_the_answer_repeats():
    from unimed.geometry import reorient

    motion = np.eye(4)
    motion[:3, 3] = (5, -4, 3)
    turned, turned_grid = reorient(scanned(GRID, motion), GRID, "SPL")
    one, _ = register_rigid(scanned(GRID), GRID, turned, turned_grid)
    two, _ = register_rigid(scanned(GRID), GRID, turned, turned_grid)
    assert np.array_equal(one, two)
    assert corner_error_vox(motion @ GRID.affine, one @ GRID.affine, SHAPE) < 1.0


def test_grids_without_a_place_are_refused():
    array = np.zeros((9, 9, 9), np.float32)
    with pytest.raises(GeometryError, match="without a place"):
        register_rigid(array, Geometry.pixels(), array, GRID)
    with pytest.raises(GeometryError, match="sheared"):
        register_rigid(array, sheared_grids(1)[0], array, GRID)

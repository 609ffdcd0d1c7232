import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimed.geometry import ALL_ORIENTATIONS, Geometry, GeometryError, axis_codes, lps_to_ras, reorient

DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def rotation(angles):
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def oblique(spacing, angles, origin):
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def test_there_are_48_distinct_orientations():
    assert len(set(ALL_ORIENTATIONS)) == 48


@settings(max_examples=60, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.05, 8.0)] * 3),
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    start=st.sampled_from(ALL_ORIENTATIONS),
    end=st.sampled_from(ALL_ORIENTATIONS),
)
def test_reorient_keeps_every_voxel_in_its_place_and_returns(spacing, angles, origin, start, end):
    shape = (3, 4, 5)
    array = np.arange(60).reshape(shape)
    geometry = Geometry(oblique(spacing, angles, origin))
    first, first_geometry = reorient(array, geometry, start)
    moved, moved_geometry = reorient(first, first_geometry, end)
    assert moved_geometry.orientation == end
    assert geometry.spacing == pytest.approx(spacing) and sorted(moved_geometry.spacing) == pytest.approx(
        sorted(spacing)
    )

    old_index = np.stack(np.unravel_index(moved.ravel(), shape) + (np.ones(60, int),))
    new_index = np.stack(np.unravel_index(np.arange(60), moved.shape) + (np.ones(60, int),))
    displacement_mm = (geometry.affine @ old_index - moved_geometry.affine @ new_index)[:3]
    error_vox = np.abs(np.linalg.solve(geometry.affine[:3, :3], displacement_mm)).max()
    assert error_vox < 1e-6

    back, back_geometry = reorient(moved, moved_geometry, geometry.orientation)
    assert np.array_equal(back, array)
    assert np.allclose(back_geometry.affine, geometry.affine, atol=1e-8)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_axis_codes_agree_with_nibabel(orientation):
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([DIRECTIONS[letter] for letter in orientation])
    assert axis_codes(affine) == "".join(nibabel.aff2axcodes(affine)) == orientation


def test_lps_to_ras_is_its_own_inverse():
    affine = oblique((1, 2, 3), (0.1, 0.2, 0.3), (4, 5, 6))
    assert np.allclose(lps_to_ras(lps_to_ras(affine)), affine)


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.diag((1, 0, 1, 1)),
        np.full((4, 4), np.nan),
        [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ],
)
def test_impossible_affines_are_refused(affine):
    with pytest.raises(GeometryError):
        Geometry(affine)


def test_unknown_orientation_and_flat_array_are_refused():
    geometry = Geometry(np.eye(4))
    with pytest.raises(ValueError, match="RRS"):
        reorient(np.zeros((2, 2, 2)), geometry, "RRS")
    with pytest.raises(ValueError, match="three axes"):
        reorient(np.zeros((2, 2)), geometry, "RAS")

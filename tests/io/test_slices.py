"""Slices of a volume: recorded numbers, views, neighbours."""

import json

import numpy as np
import pytest
import torch
from closeness import assert_close
from golden_files import SMALL

from unimed.geometry import ALL_ORIENTATIONS, Geometry, reorient
from unimed.io.slices import VIEWS, SliceGrid, choose_axis, to_view, with_neighbors

RECORDED = np.load(SMALL / "biomedparse" / "slices.npz")
FACTS = json.loads((SMALL / "biomedparse" / "processing.json").read_text())["process_input"]


@pytest.mark.parametrize("name", sorted(FACTS))
def test_equal_to_the_recording(name):
    volume = RECORDED[f"{name}.in"]
    grid = SliceGrid(volume.shape, choose_axis(volume.shape), 64)
    assert grid.axis == FACTS[name]["valid_axis"]
    whole = grid.prepare(grid.planes(volume, 0, grid.depth)).numpy()
    parts = [grid.prepare(grid.planes(volume, z, min(z + 3, grid.depth))).numpy() for z in range(0, grid.depth, 3)]
    assert_close(whole, RECORDED[f"{name}.out"], name)
    assert_close(np.concatenate(parts), whole, "slice by slice or all at once")
    back = np.zeros(volume.shape, np.uint8)
    grid.put(back, grid.restore(RECORDED[f"{name}.label64"]), 0)
    assert np.array_equal(back, RECORDED[f"{name}.label_back"])


def test_neighbours_are_mirrored_at_the_ends():
    planes = torch.arange(4.0)[:, None, None]
    assert with_neighbors(planes, 0, 0, 4, 4)[:, :, 0, 0].tolist() == [[0, 1, 1], [1, 0, 2], [2, 1, 3], [3, 2, 2]]
    assert with_neighbors(planes[1:], 1, 2, 4, 4)[:, :, 0, 0].tolist() == [[2, 1, 3], [3, 2, 2]]
    assert with_neighbors(planes[:1], 0, 0, 1, 1).flatten().tolist() == [0, 0, 0]


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::5])
def test_every_stored_orientation_is_seen_alike(orientation):
    volume = np.random.default_rng(0).integers(0, 255, (24, 20, 9), dtype=np.uint8)
    upright = Geometry(np.diag((1.0, 1, 3, 1)))
    seen = reorient(volume, upright, VIEWS["axial"])[0]
    again, turned, axis = to_view(*reorient(volume, upright, orientation))
    assert axis == 0 and turned.orientation == VIEWS["axial"] and np.array_equal(again, seen)


def test_sagittal_stacks_are_cut_as_they_were_taken():
    # 20 slices from right to left, 5 mm apart, of 200 x 200 pixels.
    volume = np.zeros((200, 200, 20), np.uint8)
    geometry = Geometry([[0, 0, -5, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    turned, seen, axis = to_view(volume, geometry)
    assert axis == 0 and turned.shape == (20, 200, 200) and seen.orientation == "LIP"
    assert to_view(volume, geometry, "coronal")[0].shape == (200, 200, 20)


def test_unknown_directions_stay_as_stored():
    volume = np.zeros((20, 30, 5), np.uint8)
    assert to_view(volume, Geometry.pixels())[2] == 2
    with pytest.raises(ValueError, match="directions of the axes"):
        to_view(volume, Geometry.pixels(), "axial")
    with pytest.raises(ValueError, match="unknown view"):
        to_view(volume, Geometry.pixels(), "oblique")
    with pytest.raises(ValueError, match="three axes"):
        to_view(volume[..., None], Geometry.pixels())

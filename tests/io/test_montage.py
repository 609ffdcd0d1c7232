import numpy as np
import pytest
from PIL import Image

from unimed.geometry import Geometry
from unimed.io.montage import MOST_TARGETS, key_slices, write_montage
from unimed.io.windows import choose_window
from unimed.structures import Region

TURNED = np.array([[0, 0, 2, 0], [1, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1.0]])


def ball(shape, centre, radius):
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) < radius**2


def test_key_slices_show_the_mask_and_its_largest_slice():
    mask = np.zeros((40, 6, 6), bool)
    mask[5:30, 2:4, 2:4] = True
    mask[22] = True
    chosen = key_slices(mask)
    assert len(chosen) == 5 and 22 in chosen and chosen == sorted(chosen) and all(mask[place].any() for place in chosen)
    assert key_slices(np.zeros((10, 4, 4), bool)) == [1, 3, 5, 7, 9]
    one = np.zeros((10, 4, 4), bool)
    one[3] = True
    assert key_slices(one) == [3]
    assert key_slices(np.zeros((1, 4, 4), bool)) == [0]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("affine", [np.diag([-1.0, -1, 3, 1]), TURNED])
def test_outlines_lie_where_the_mask_is_in_every_grid(tmp_path, plane, affine):
    geometry = Geometry(affine)
    mask = ball((20, 24, 12), (8, 10, 6), 4)
    array = np.where(mask, 200, 0).astype(np.uint8)
    region = Region("a ball", mask=mask, presence=0.9)
    path = write_montage(tmp_path / "m.png", array, geometry, [region], choose_window(array, geometry), plane=plane)
    with Image.open(path) as picture:
        assert picture.info["Notice"] == "research use only"
        pixels = np.asarray(picture).astype(int)
    # Tinted pixels (red above blue) are those of the bright ball: none of them was black before.
    bright = pixels.min(2) > 100
    tinted = (pixels[..., 0] - pixels[..., 2] > 20) & bright
    assert tinted.sum() > 1000 and tinted.sum() > 0.5 * bright.sum()


def test_targets_without_voxels_and_results_without_regions_are_shown(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (6, 20, 24), dtype=np.uint8)
    geometry = Geometry.pixels()
    window = choose_window(array)
    none = np.zeros(array.shape, bool)
    one, two, many = [Region("a", presence=0.9)], [Region("a", mask=none)] * 2, [Region("b", mask=none)] * 40
    results = ([], one, two, many)
    shapes = [
        Image.open(write_montage(tmp_path / f"{number}.png", array, geometry, regions, window)).size
        for number, regions in enumerate(results)
    ]
    assert shapes[0][1] > 100 and shapes[2][1] > 1.5 * shapes[1][1] and shapes[3][1] < (MOST_TARGETS + 1) * shapes[1][1]

import hashlib
import json

import numpy as np
import PIL
import pytest
from golden_files import SMALL
from PIL import Image

from unimed.models.grounded.tiling import best_grid, tile

RECORDED = json.loads((SMALL / "unibiomed" / "tiling.json").read_text())


def synthetic(width, height, seed):
    """The picture the tiles were recorded of: a texture, waves and a bright disc, other ones in each channel."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    disc = (x - width * (0.3 + 0.05 * (seed % 8))) ** 2 + (y - height / 2) ** 2 < (0.25 * min(width, height)) ** 2
    channels = []
    for c in range(3):
        texture = (x * 7 + y * 13 + c * 29 + (x * y) // 17 + seed * 31) % 64
        waves = (127 + 100 * np.sin(x / (9 + 3 * c + seed)) * np.cos(y / (7 + 2 * c))).astype(int)
        channels.append((texture + waves // 2 + 60 * disc) % 256)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def test_grids_are_those_of_the_reference():
    table = RECORDED["grid_table"]
    assert len(table) == 450
    for width, height, max_tiles, columns, rows in table:
        assert best_grid(width, height, 448, max_tiles) == (columns, rows), (width, height, max_tiles)


@pytest.mark.parametrize(
    "entry", RECORDED["results"], ids=lambda e: f"{e['size_wh'][0]}x{e['size_wh'][1]}-{e['max_num']}"
)
def test_every_recorded_tile(entry):
    tiles = [np.asarray(one) for one in tile(synthetic(*entry["size_wh"], entry["seed"]), 448, entry["max_num"])]
    assert len(tiles) == entry["n_tiles_total"]
    assert [one.mean() for one in tiles] == pytest.approx(entry["tile_mean_u8"], abs=0.05)
    if PIL.__version__.split(".")[0] == RECORDED["pil"].split(".")[0]:  # another Pillow may round another way
        assert [hashlib.sha256(one.tobytes()).hexdigest() for one in tiles] == entry["tile_sha256"]


@pytest.mark.parametrize(("size", "count"), [((256, 128), 3), ((640, 480), 13), ((448, 448), 1), ((20000, 10), 13)])
def test_tiles_and_thumbnail(size, count):
    tiles = tile(Image.new("RGB", size), 448, 12)
    assert len(tiles) == count
    assert all(t.size == (448, 448) for t in tiles)

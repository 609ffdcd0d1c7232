import json

import pytest
from golden_files import SMALL
from PIL import Image

from unimed.models.grounded.tiling import best_grid, tile


def test_grids_are_those_of_the_reference():
    table = json.loads((SMALL / "unibiomed" / "tiling.json").read_text())["grid_table"]
    assert len(table) == 450
    for width, height, max_tiles, columns, rows in table:
        assert best_grid(width, height, 448, max_tiles) == (columns, rows), (width, height, max_tiles)


@pytest.mark.parametrize(("size", "count"), [((256, 128), 3), ((640, 480), 13), ((448, 448), 1), ((20000, 10), 13)])
def test_tiles_and_thumbnail(size, count):
    tiles = tile(Image.new("RGB", size), 448, 12)
    assert len(tiles) == count
    assert all(t.size == (448, 448) for t in tiles)

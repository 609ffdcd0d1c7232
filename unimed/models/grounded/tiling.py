"""Cutting an image into tiles of the size a vision tower knows (InternVL's dynamic resolution)."""

from __future__ import annotations

from functools import cache

from PIL import Image


@cache
def grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of at most `max_tiles` tiles, fewest tiles first."""
    pairs = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if c * r <= max_tiles]
    return tuple(sorted(pairs, key=lambda pair: pair[0] * pair[1]))


def best_grid(width: int, height: int, tile_size: int, max_tiles: int) -> tuple[int, int]:
    """The grid whose aspect ratio is nearest to the image's.

    On a tie the larger grid is taken only if the image has more pixels than half of what that grid would hold.
    """
    aspect = width / height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in grids(max_tiles):
        difference = abs(aspect - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and width * height > 0.5 * tile_size**2 * columns * rows:
            best = (columns, rows)
    return best


def tile(image: Image.Image, tile_size: int, max_tiles: int) -> list[Image.Image]:
    """Tiles row by row, and the whole image squashed to one tile at the end where there is more than one.

    Args:
        image: RGB.
        tile_size: side of a tile in pixels.
        max_tiles: most tiles, the thumbnail not counted.
    """
    columns, rows = best_grid(*image.size, tile_size, max_tiles)
    resized = image.resize((tile_size * columns, tile_size * rows), Image.Resampling.BICUBIC)
    tiles = [
        resized.crop((c * tile_size, r * tile_size, (c + 1) * tile_size, (r + 1) * tile_size))
        for r in range(rows)
        for c in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(image.resize((tile_size, tile_size), Image.Resampling.BICUBIC))
    return tiles

"""Nuclei in fluorescence microscopy: the image of the 2018 Data Science Bowl that stardist ships, cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unimed.data.packages import extract_all
from unimed.data.prepare.cases import Case, Structure
from unimed.io.images import load
from unimed.io.masks import load_labels
from unimed.io.read import read

PACKAGES = ("stardist",)
TILE_PX = 128
#: (row, column) of the tiles that are not for training; the right column is the test.
VALIDATION_TILES = ((0, 2), (2, 2))
TEST_COLUMN = 3
#: A nucleus cut by the border of a tile counts as one if at least this much of it is left.
LEAST_AREA_PX = 20


def cases(archives: dict[str, Path], folder: Path) -> Iterator[Case]:
    """Sixteen tiles of 128 x 128: ten to train, two to validate, the right column of four to test."""
    names = ["stardist/data/images/img2d.tif", "stardist/data/images/mask2d.tif"]
    image_path, label_path = extract_all(archives["stardist"], names, folder).values()
    labels, _ = load_labels(label_path)
    # The grey scale is fixed on the columns that are trained on, so that the test tells nothing of itself.
    low, high = np.percentile(read(image_path)[0][:, : TEST_COLUMN * TILE_PX], (0.5, 99.5))
    image = load(image_path, window=((low + high) / 2, high - low)).pixels
    for row in range(image.shape[0] // TILE_PX):
        for column in range(image.shape[1] // TILE_PX):
            window = np.s_[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
            split = "test" if column == TEST_COLUMN else "val" if (row, column) in VALIDATION_TILES else "train"
            objects = tuple(labels[window] == value for value in np.unique(labels[window]) if value)
            objects = tuple(mask for mask in objects if mask.sum() >= LEAST_AREA_PX)
            structures = ()
            if objects:
                structures = (Structure("nuclei", labels[window] > 0, piece="nucleus", objects=objects),)
            yield Case(
                name=f"nuclei_r{row}c{column}",
                image=image[window],
                modality="fluorescence microscopy",
                site="cultured cells",
                split=split,
                patient_id="stardist:img2d",
                source="stardist 0.9.2, img2d.tif (2018 Data Science Bowl)",
                license="CC0-1.0",
                label_origin="mask shipped in package",
                structures=structures,
                absent=("lesion", "brain", "grey matter", "white matter", "lung"),
                note="same slide as training, another tile" if split != "train" else "tile of one slide",
            )

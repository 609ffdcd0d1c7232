"""Two microscopy images of sources that are not trained on: an H&E tile and nuclei in fluorescence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unimed.data.prepare.blocks.images import NOT_IN_TISSUE, image_cases
from unimed.data.prepare.cases import Case

PACKAGES = ("wsidicom-data", "mahotas")
IMAGES = (
    (
        "wsidicom-data",
        "wsidicom_data/data/test_tile.png",
        "histology",
        "",
        "Apache-2.0",
        "Histology stained with haematoxylin and eosin.",
        NOT_IN_TISSUE,
    ),
    (
        "mahotas",
        "mahotas/demos/data/nuclear.png",
        "fluorescence microscopy",
        "",
        "MIT",
        "Fluorescence microscopy of cell nuclei.",
        ("lesion", *NOT_IN_TISSUE),
    ),
)


def cases(archives: dict[str, Path], folder: Path) -> Iterator[Case]:
    """Two pictures to test on."""
    yield from image_cases(IMAGES, "test", archives, folder)

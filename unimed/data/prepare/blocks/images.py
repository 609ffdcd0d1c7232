"""Retina, immunohistochemistry and H&E images to train on; their captions follow the packages' documentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unimed.data.packages import extract_member
from unimed.data.prepare.cases import Case, shrink
from unimed.io.images import load
from unimed.io.read import read

PACKAGES = ("scikit-image", "stardist")
NOT_IN_TISSUE = ("brain", "grey matter", "white matter")

#: (package, member, modality, site, license, caption, phrases that are certainly not in the picture).
IMAGES = (
    (
        "scikit-image",
        "skimage/data/retina.jpg",
        "fundus photography",
        "retina",
        "CC0-1.0",
        "Fundus photograph of a human retina.",
        ("nuclei", *NOT_IN_TISSUE),
    ),
    (
        "scikit-image",
        "skimage/data/ihc.png",
        "histology",
        "colon",
        "no known copyright, as the package says",
        "Histology of colonic glands, stained for FHL2 in brown (DAB) and counterstained with haematoxylin in blue.",
        NOT_IN_TISSUE,
    ),
    (
        "stardist",
        "stardist/data/images/histo.jpg",
        "histology",
        "",
        "BSD-3-Clause for the package; the picture is from TCIA",
        "Histology stained with haematoxylin and eosin, with many nuclei.",
        NOT_IN_TISSUE,
    ),
)
SPLIT = "train"


def cases(archives: dict[str, Path], folder: Path) -> Iterator[Case]:
    """Three pictures to train on."""
    yield from image_cases(IMAGES, SPLIT, archives, folder)


def image_cases(images, split: str, archives: dict[str, Path], folder: Path) -> Iterator[Case]:
    """One case per line of a table like `PICTURES`."""
    for package, member, modality, site, license, caption, absent in images:
        path = extract_member(archives[package], member, folder / Path(member).name)
        if modality == "fluorescence microscopy":
            bright = read(path)[0]
            bright = bright if bright.ndim == 2 else bright.max(axis=2)
            image = load(bright, percentiles=(0.5, 99.5), ignore_zero=False).pixels
        else:
            image = load(path).pixels
        yield Case(
            name=f"picture_{package.replace('-', '_')}_{Path(member).stem}",
            image=shrink(np.ascontiguousarray(image)),
            modality=modality,
            site=site,
            split=split,
            patient_id=f"{package}:{Path(member).name}",
            source=f"{package}, {Path(member).name}",
            license=license,
            label_origin="package documentation",
            absent=absent,
            caption=caption,
            details={"caption_origin": "caption follows the package documentation"},
        )

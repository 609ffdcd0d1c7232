"""Brain, grey and white matter on the ICBM 152 average T1 template that nilearn ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.data.packages import extract_all
from unimed.data.prepare.cases import Case, Structure
from unimed.geometry import reorient
from unimed.io.read import read

PACKAGES = ("nilearn",)
MEMBER = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"

#: Heights in mm of the axial slices. Neighbouring slabs keep 8 mm between them, for slices close by look alike.
SLABS_MM = {
    "train": (*range(-48, -7, 2), *range(44, 67, 2)),
    "val": tuple(range(0, 13, 2)),
    "test": tuple(range(20, 37, 2)),
}
#: Slabs (lowest, highest height in mm) that are volumes of their own: the lower part of each split's slices.
VOLUMES_MM = {"train": (-48, -8), "val": (0, 12), "test": (20, 36)}
#: A structure smaller than this in a slice is not asked for.
LEAST_AREA_PX = 50


def cases(archives: dict[str, Path], folder: Path) -> Iterator[Case]:
    """Axial slices of 1 mm, patient's right on the left of the picture, and a slab of each split as a volume."""
    volumes = []
    for name in ("t1", "gm", "wm"):
        (path,) = extract_all(archives["nilearn"], [MEMBER.format(name)], folder).values()
        # Axes to the patient's left, back and head: rows then run to the back as in a radiologist's display.
        volumes.append(reorient(*read(path), "LPS"))
    (image, geometry), gray, white = volumes[0], volumes[1][0] > 127, volumes[2][0] > 127
    brain = image > 0
    image = image.astype(np.uint8)
    shared = dict(
        modality="MRI",
        site="brain",
        patient_id="nilearn:mni152",
        source="nilearn 0.14.1, ICBM 152 2009a symmetric T1 (average of 152 people)",
        license="ICBM 152 notice (use and redistribution permitted with the copyright notice)",
        label_origin="ICBM tissue probability > 0.5; brain is image > 0",
    )
    for split, heights in SLABS_MM.items():
        for height_mm in heights:
            slice_index = round(height_mm - geometry.affine[2, 3])
            masks = {
                "brain": brain[:, :, slice_index].T,
                "grey matter": gray[:, :, slice_index].T,
                "white matter": white[:, :, slice_index].T,
            }
            yield Case(
                name=f"brain_z{height_mm:+03d}".replace("+", "p").replace("-", "m"),
                image=np.ascontiguousarray(image[:, :, slice_index].T),
                split=split,
                structures=tuple(
                    Structure(phrase, np.ascontiguousarray(mask))
                    for phrase, mask in masks.items()
                    if mask.sum() >= LEAST_AREA_PX
                ),
                absent=("nuclei", "lung", "lesion"),
                note=f"axial slice at {height_mm} mm; all splits show the same template, slabs 8 mm apart",
                plane="axial",
                pixel_mm=(1.0, 1.0),
                radiological=True,
                **shared,
            )
    for split, (low_mm, high_mm) in VOLUMES_MM.items():
        slab = slice(round(low_mm - geometry.affine[2, 3]), round(high_mm - geometry.affine[2, 3]) + 1)
        affine = geometry.affine.copy()
        affine[:3, 3] += slab.start * affine[:3, 2]
        yield Case(
            name=f"brain_volume_{split}",
            image=image[:, :, slab],
            split=split,
            structures=(Structure("grey matter", gray[:, :, slab]), Structure("white matter", white[:, :, slab])),
            note=f"slab from {low_mm} to {high_mm} mm; all splits show the same template, slabs 8 mm apart",
            geometry=replace(geometry, affine=affine),
            **shared,
        )

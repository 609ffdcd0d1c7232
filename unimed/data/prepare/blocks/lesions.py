"""One lesion in each of the five volumes that pyradiomics ships. Only five exist: scores on them prove little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unimed.data.packages import extract_all
from unimed.data.prepare.cases import Case, Structure
from unimed.geometry import reorient
from unimed.io.read import read
from unimed.io.windows import choose_window

PACKAGES = ("pyradiomics",)
MEMBER = "pyradiomics-3.0.1/data/{}_{}.nrrd"

#: Volume -> (split, modality, site, slices without lesion to take along). Which person it is stands in no header.
VOLUMES = {
    "brain1": ("train", "MRI", "brain", 5),
    "lung2": ("train", "CT", "chest", 8),
    "breast1": ("val", "MRI", "breast", 3),
    "brain2": ("test", "MRI", "brain", 3),
    "lung1": ("test", "CT", "chest", 3),
}
#: Slices this close to the labelled ones are not used as examples without lesion: partial volume may show it.
MARGIN_SLICES = 2


def cases(archives: dict[str, Path], folder: Path) -> Iterator[Case]:
    """Every labelled axial slice, some without lesion, and the five volumes whole."""
    members = [MEMBER.format(name, kind) for name in VOLUMES for kind in ("image", "label")]
    paths = extract_all(archives["pyradiomics"], members, folder)
    for name, (split, modality, site, without) in VOLUMES.items():
        # The headers of brain1 and brain2 run their rows to the front; reorienting turns them the right way up.
        array, geometry = reorient(*read(paths[MEMBER.format(name, "image")]), "LPS")
        label, _ = reorient(*read(paths[MEMBER.format(name, "label")]), "LPS")
        lesion = label > 0
        gray = choose_window(array, geometry, site="lung" if modality == "CT" else "", modality=modality)(array)
        absent = ["nuclei"]
        if site != "brain":
            absent += ["grey matter", "white matter", "brain"]
        if site != "chest":
            absent += ["lung"]
        shared = dict(
            modality=modality,
            site=site,
            split=split,
            patient_id=f"pyradiomics:{name}",
            source=f"pyradiomics 3.0.1, {name}",
            license="BSD-3-Clause for the package; origin of the volume not stated in it",
            label_origin="mask shipped in package; the name 'lesion' was given by viewing, not by an expert",
        )
        labeled = np.flatnonzero(lesion.any(axis=(0, 1)))
        for index in (*labeled, *_without_lesion(labeled, array.shape[2], without)):
            mask = np.ascontiguousarray(lesion[:, :, index].T)
            yield Case(
                name=f"lesion_{name}_s{index:02d}",
                image=np.ascontiguousarray(gray[:, :, index].T),
                structures=(Structure("lesion", mask, piece="lesion", objects=(mask,)),) if mask.any() else (),
                absent=tuple(absent) if mask.any() else (*absent, "lesion"),
                note="one of five volumes; that they are different people is likely but not documented",
                plane="axial",
                pixel_mm=(geometry.spacing[1], geometry.spacing[0]),
                details={"finding_asked": True},
                radiological=True,
                **shared,
            )
        yield Case(
            name=f"lesion_{name}_volume",
            image=array,
            structures=(Structure("lesion", lesion),),
            note="the whole volume of the slices of the same name",
            geometry=geometry,
            **shared,
        )


def _without_lesion(labeled: np.ndarray, slices: int, count: int) -> list[int]:
    """`count` slices spread over those that keep `MARGIN_SLICES` from every labelled one; the ends are left out."""
    free = [i for i in range(1, slices - 1) if np.abs(labeled - i).min() > MARGIN_SLICES]
    if len(free) <= count:
        return free
    return [free[i] for i in np.linspace(0, len(free) - 1, count).round().astype(int)]

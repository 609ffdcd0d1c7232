"""Results in the grid of their source: NIfTI, NRRD and NPZ."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry
from unimed.io.result import Prediction, drawn_regions, label_map, overlapping
from unimed.io.write import write_npz, write_nrrd, write_volume
from unimed.registry import WRITERS


@WRITERS.register_module("nifti")
def as_nifti(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME.nii.gz`: the label map in the geometry of the source.

    Where regions overlap also `NAME-LABEL.nii.gz` of each; `NAME-instances.nii.gz` where objects were numbered. A
    sheared grid, which ITK cannot open as NIfTI, becomes `.nrrd`.

    Raises:
        ValueError: no mask, or masks that differ in shape.
    """
    return _maps(prediction, ".nii.gz", write_volume)


@WRITERS.register_module("nrrd")
def as_nrrd(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME.nrrd` and the others, as "nifti" writes them.

    Raises:
        ValueError: no mask, or masks that differ in shape.
    """
    return _maps(prediction, ".nrrd", write_nrrd)


def _maps(prediction: Prediction, suffix: str, write) -> dict:
    maps = {"": label_map(prediction)}
    if overlapping(prediction):
        maps |= {f"-{label}": region.mask for label, region in drawn_regions(prediction)}
    if prediction.instances is not None:
        maps["-instances"] = prediction.instances
    geometry = prediction.geometry or Geometry.pixels()
    return {f"{stem}{suffix}": partial(_write_map, array=m, geometry=geometry, write=write) for stem, m in maps.items()}


def _write_map(path: Path, array: np.ndarray, geometry: Geometry, write) -> Path:
    # An image is a volume of one slice.
    return write(path, array[..., None] if array.ndim == 2 else array, geometry)


@WRITERS.register_module("npz")
def as_npz(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME.npz`: `labels`; where regions overlap `masks` [regions, ...]; of volumes by prompts what
    "biomedparse-npz" holds too.

    Raises:
        ValueError: no mask, or masks that differ in shape.
    """
    arrays = {"labels": label_map(prediction)}
    if prediction.existence is not None:
        arrays |= challenge_arrays(prediction)
    if overlapping(prediction):
        arrays["masks"] = np.stack([region.mask for _, region in drawn_regions(prediction)])
    return {".npz": lambda path: write_npz(path, arrays)}


def challenge_arrays(prediction: Prediction) -> dict[str, np.ndarray]:
    """`segs` (labels, or numbers of instances), `existence` and `text_prompts` (JSON text)."""
    import json

    prompts = {str(label): text for label, text in prediction.prompts.items()}
    arrays = {
        "segs": label_map(prediction) if prediction.instances is None else prediction.instances,
        "text_prompts": np.array(json.dumps(prompts)),
    }
    return arrays | ({} if prediction.existence is None else {"existence": prediction.existence})

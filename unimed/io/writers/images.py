"""Results of images: JSON, overlays for a person, and masks as pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unimed.files import json_text, write_text
from unimed.io.answers import write_mask
from unimed.io.montage import montage_of
from unimed.io.overlay import write_overlay
from unimed.io.result import Prediction, drawn_regions, overlapping
from unimed.names import source_of
from unimed.registry import WRITERS


@WRITERS.register_module("json")
def as_json(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME.json`: text, regions with boxes and run lengths, what was found and how; see docs/results.md."""

    def write(path: Path) -> Path:
        name = path.name.removesuffix(".json")
        source = source_of(path.parent, name)
        values = prediction.to_dict() | ({"source_id": source} if source else {})
        if prediction.is_volume:
            written = [suffix for form, suffixes in _LABEL_MAPS for suffix in suffixes if form in formats]
            beside = next((f"{name}{s}" for s in written if (path.parent / f"{name}{s}").is_file()), None)
            _refer(prediction, values, beside)
        return write_text(path, json_text(values))

    return {".json": write}


#: Formats that hold a label map, and how their files end.
_LABEL_MAPS = (("nifti", (".nii.gz", ".nrrd")), ("nrrd", (".nrrd",)), ("npz", (".npz",)))


def _refer(prediction: Prediction, values: dict, beside: str | None) -> None:
    """Sizes of 3D regions, and where they lie in a label map `beside`, which then need not be repeated here."""
    repeated = beside is None or overlapping(prediction)
    for entry, target in zip(values["regions"], values["targets"], strict=True):
        entry["voxels"] = target["voxels"]
        entry |= {} if target["volume_ml"] is None else {"volume_ml": target["volume_ml"]}
        if beside is not None:
            entry["label"] = {"file": beside, "value": target["label"]}
        if not repeated:
            entry.pop("mask_rle", None)


@WRITERS.register_module("png")
def as_overlay(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME.png`: regions drawn over the image; of a volume a montage of key slices.

    Raises:
        ValueError: without `image`, or one that does not fit.
    """
    if image is None:
        raise ValueError("format 'png' draws over the image; give image=")
    if prediction.is_volume or image.ndim == 3 and image.shape[-1] != 3:
        return {".png": lambda path: montage_of(path, prediction, image)}
    return {".png": lambda path: write_overlay(path, image, prediction.regions)}


@WRITERS.register_module("mask-png")
def as_mask_images(prediction: Prediction, image=None, formats=()) -> dict:
    """`NAME-LABEL.png`: the mask of each region as 8-bit picture of 0 and 255.

    Raises:
        ValueError: no mask, or masks of a volume.
    """
    drawn = drawn_regions(prediction)
    if prediction.is_volume:
        raise ValueError("format 'mask-png' holds 2D masks, this prediction is of a volume; use 'nifti' or 'nrrd'")
    return {f"-{label}.png": partial(write_mask, mask=region.mask) for label, region in drawn}

"""Results of images: JSON, overlays for a person, and masks as pictures."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from unimed.files import write_text
from unimed.io.answers import write_mask
from unimed.io.overlay import write_overlay
from unimed.io.result import Prediction, drawn_regions
from unimed.names import source_of
from unimed.registry import WRITERS


@WRITERS.register_module("json")
def as_json(prediction: Prediction, image=None) -> dict:
    """`NAME.json`: text, regions with boxes and run lengths, what was found and how; see docs/results.md."""

    def write(path: Path) -> Path:
        source = source_of(path.parent, path.name.removesuffix(".json"))
        values = prediction.to_dict() | ({"source_id": source} if source else {})
        return write_text(path, json.dumps(values, indent=1, ensure_ascii=False))

    return {".json": write}


@WRITERS.register_module("png")
def as_overlay(prediction: Prediction, image=None) -> dict:
    """`NAME.png`: regions drawn over the image.

    Raises:
        ValueError: without `image`, or for masks of a volume.
    """
    if image is None:
        raise ValueError("format 'png' draws over the image; give image=")
    if prediction.is_volume:
        raise ValueError("format 'png' draws 2D regions, this prediction is of a volume; use 'nifti' or 'nrrd'")
    return {".png": lambda path: write_overlay(path, image, prediction.regions)}


@WRITERS.register_module("mask-png")
def as_mask_pictures(prediction: Prediction, image=None) -> dict:
    """`NAME-LABEL.png`: the mask of each region as 8-bit picture of 0 and 255.

    Raises:
        ValueError: no mask, or masks of a volume.
    """
    drawn = drawn_regions(prediction)
    if prediction.is_volume:
        raise ValueError("format 'mask-png' holds 2D masks, this prediction is of a volume; use 'nifti' or 'nrrd'")
    return {f"-{label}.png": partial(write_mask, mask=region.mask) for label, region in drawn}

"""A `Prediction` on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.io.overlay import write_overlay
from unimed.io.write import write_nifti, write_npz, write_whole
from unimed.structures import Geometry, Prediction

FORMATS = ("json", "png", "nifti", "npz", "dicom-seg")


def save_prediction(prediction: Prediction, folder, name: str, formats: Sequence[str], image=None) -> list[Path]:
    """See `Prediction.save`."""
    unknown = [form for form in formats if form not in FORMATS]
    if unknown:
        raise ValueError(f"unknown formats {unknown}; known are {', '.join(FORMATS)}")
    if "png" in formats and image is None:
        raise ValueError("format 'png' draws over the image; give image=")
    if Path(name).name != name:
        raise ValueError(f"name {name!r} must be a plain file name")
    if {"nifti", "npz", "dicom-seg"} & set(formats):
        label_map(prediction)  # what cannot be written must stop before half of the formats are
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for form in formats:
        if form == "json":
            text = json.dumps(prediction.to_dict(), indent=1)
            written.append(write_whole(folder / f"{name}.json", lambda path, text=text: path.write_text(text)))
        elif form == "png":
            written.append(write_overlay(folder / f"{name}.png", image, prediction.regions))
        elif form == "nifti":
            labels = label_map(prediction)
            # An image is a volume of one slice.
            labels = labels[..., None] if labels.ndim == 2 else labels
            geometry = prediction.geometry or Geometry.pixels()
            written.append(write_nifti(folder / f"{name}.nii.gz", labels, geometry))
        elif form == "dicom-seg":
            written.append(_write_dicom_seg(folder / f"{name}.seg.dcm", prediction))
        else:
            written.append(write_npz(folder / f"{name}.npz", {"labels": label_map(prediction)}))
    return written


def _write_dicom_seg(path: Path, prediction: Prediction) -> Path:
    from unimed.io.dicom_seg import write_dicom_seg

    drawn = {k: region for k, region in enumerate(prediction.regions, 1) if region.mask is not None}
    names = {k: region.phrase for k, region in drawn.items()}
    masks = [region.mask for region in drawn.values()]
    labels = label_map(prediction)
    algorithm = Path(prediction.model_reference).name or "unimed"
    return write_dicom_seg(path, labels, prediction.geometry, names, algorithm=algorithm, masks=masks)


def label_map(prediction: Prediction) -> np.ndarray:
    """One integer per pixel: 0 for nothing, k for the k-th region; where regions overlap the later one wins.

    Raises:
        ValueError: no region has a mask, or masks differ in shape.
    """
    masks = [(index, region.mask) for index, region in enumerate(prediction.regions, 1) if region.mask is not None]
    if not masks:
        raise ValueError("the prediction holds no mask to write; formats 'json' and 'png' need none")
    if len({mask.shape for _, mask in masks}) > 1:
        raise ValueError(f"masks differ in shape: {sorted({mask.shape for _, mask in masks})}")
    labels = np.zeros(masks[0][1].shape, dtype=np.uint8 if len(masks) < 255 else np.uint16)
    for index, mask in masks:
        labels[mask] = index
    return labels

"""What a model says of an image and where it points, in memory and on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unimed.files import FolderLock, json_text, write_text
from unimed.geometry import Geometry
from unimed.io.clinical import CLINICAL_FORMATS, save_clinical
from unimed.io.images import ImageSource
from unimed.io.overlay import draw_regions, write_overlay
from unimed.io.rle import compress_counts, encode_mask
from unimed.io.write import write_npz, write_volume
from unimed.names import ResultNames, source_of
from unimed.structures import Region

FORMATS = ("json", "png", "nifti", "npz", *CLINICAL_FORMATS)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image and where it points. Research use only.

    `timing_s` maps step names to seconds; `markup` is the answer with its markers (`<p>`, `[SEG]`, stop word), where
    the model speaks in markers; `image` says where the image came from and what was done to it (`image.steps`).
    """

    text: str
    regions: tuple[Region, ...] = ()
    geometry: Geometry | None = None
    timing_s: Mapping[str, float] = field(default_factory=dict)
    model_reference: str = ""
    markup: str = ""
    image: ImageSource | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON; masks as COCO run lengths with their [height, width] counts.

        A region whose presence and mask contradict each other says so as `remark`.
        """

        def plain(region: Region) -> dict[str, Any]:
            values = {name: getattr(region, name) for name in Region.__dataclass_fields__ if name != "mask"}
            values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
            values |= {"remark": remark} if (remark := contradiction(region)) else {}
            return values | ({} if region.mask is None else {"mask_rle": encode_mask(region.mask)})

        return {
            "text": self.text,
            "regions": [plain(region) for region in self.regions],
            "timing_s": dict(self.timing_s),
            "model": without_folders(self.model_reference),
            **({} if self.image is None else {"image": self.image.to_dict()}),
            "notice": "research use only",
        }

    def plot(self, image: np.ndarray):
        """The regions drawn over `image` (HxW or HxWx3, uint8), as a PIL image."""
        from PIL import Image

        return Image.fromarray(draw_regions(image, self.regions))

    def save(
        self, folder, name: str | None = None, formats=("json",), image: np.ndarray | None = None, **options
    ) -> list:
        """Write the prediction; each file appears whole or not at all.

        Args:
            folder: made where it is not there.
            name: of the files without suffix; what bears it already is replaced. By default that of the image, and
                predictions of other images, or other predictions of this one, get names of their own.
            formats: of "json", "png" (overlay; needs `image`), "nifti" and "npz" (one label map, label k is region k),
                "dicom-seg" (beside the DICOM series that the geometry comes from; overlaps are kept).
            image: HxW or HxWx3 uint8, what the overlay is drawn on.
            options: of the clinical formats (docs/clinic.md), e.g. `deidentified=True`.

        Returns:
            the paths written.

        Raises:
            ValueError: unknown format, or "png" without `image`, or a label map without masks.
        """
        return save_prediction(self, folder, name, formats, image, **options)


def contradiction(region: Region, threshold: float = 0.5) -> str:
    """What a reader must know where the presence of a region and its mask say different things; "" where they agree."""
    if region.presence is None or region.mask is None:
        return ""
    drawn = bool(region.mask.any())
    if region.presence >= threshold and not drawn:
        return f"presence {region.presence:.2f} but the mask is empty"
    if region.presence < threshold and drawn:
        return f"presence {region.presence:.2f} but there is a mask"
    return ""


def without_folders(reference: str) -> str:
    """The name of a model without the folders it lies in, which tell of a user; ids of the hub stay as they are."""
    return Path(reference).name if os.path.isabs(reference) or reference.startswith(("~", ".")) else reference


#: (folder, image) -> {digest of a prediction: number among those saved by this process}.
_saved: dict[tuple[str, str], dict[bytes, int]] = {}


def default_name(prediction: Prediction, folder) -> str:
    """A name that no other prediction has in `folder`: that of its image where it has one.

    Several predictions of one image are numbered in the order this process saves them.
    """
    source = prediction.image.name if prediction.image is not None else ""
    digest = hashlib.sha256(repr((prediction.text, prediction.markup)).encode("utf-8", "surrogatepass"))
    for region in prediction.regions:
        digest.update(repr((region.phrase, region.box_xyxy_px)).encode("utf-8", "surrogatepass"))
        if region.mask is not None:
            digest.update(repr(region.mask.shape).encode() + np.packbits(region.mask).tobytes())
    numbers = _saved.setdefault((os.path.abspath(folder), source), {})
    number = numbers.setdefault(digest.digest(), len(numbers) + 1)
    variant = str(number) if number > 1 else ""
    return ResultNames(folder)(source or digest.digest(), variant, "" if source else "prediction")


def save_prediction(
    prediction: Prediction, folder, name: str | None, formats: Sequence[str], image=None, **options
) -> list[Path]:
    """See `Prediction.save`."""
    unknown = [form for form in formats if form not in FORMATS]
    if unknown:
        raise ValueError(f"unknown formats {unknown}; known are {', '.join(FORMATS)}")
    if "png" in formats and image is None:
        raise ValueError("format 'png' draws over the image; give image=")
    if name is not None and Path(name).name != name:
        raise ValueError(f"name {name!r} must be a plain file name")
    if {"nifti", "npz"} & set(formats):
        label_map(prediction)  # what cannot be written must stop before half of the formats are
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if name is None:
        # Processes that name and write in one folder take turns, so that none takes the name of another's result.
        with FolderLock(folder, "saving", file=".saving.lock", wait_s=60):
            return save_prediction(prediction, folder, default_name(prediction, folder), formats, image, **options)
    written: dict[str, Path | list[Path]] = {}
    for form in sorted(formats, key=lambda form: form == "json"):  # the JSON names the label map beside it
        if form == "json":
            values = _for_file(prediction, folder, name, written.get("nifti") or written.get("npz"))
            written[form] = write_text(folder / f"{name}.json", json_text(values))
        elif form == "png":
            written[form] = write_overlay(folder / f"{name}.png", image, prediction.regions)
        elif form == "nifti":
            labels = label_map(prediction)
            # An image is a volume of one slice.
            labels = labels[..., None] if labels.ndim == 2 else labels
            geometry = prediction.geometry or Geometry.pixels()
            written[form] = write_volume(folder / f"{name}.nii.gz", labels, geometry)
        elif form in CLINICAL_FORMATS:
            written[form] = save_clinical(form, prediction, folder, name, image, **options)
        else:
            written[form] = write_npz(folder / f"{name}.npz", {"labels": label_map(prediction)})
    paths = [written[form] for form in dict.fromkeys(formats)]
    return list(dict.fromkeys(p for one in paths for p in (one if isinstance(one, list) else [one])))


def _for_file(prediction: Prediction, folder: Path, name: str, beside: Path | None) -> dict[str, Any]:
    """What stands in NAME.json. Masks of three axes are not repeated where a label map holds all of them (without
    overlaps); otherwise they are compressed strings."""
    values = prediction.to_dict() | ({"source_id": source} if (source := source_of(folder, name)) else {})
    millilitres = None
    if prediction.geometry is not None and prediction.geometry.is_physical:
        millilitres = prediction.geometry.voxel_volume / 1000
    masks = [region.mask for region in prediction.regions if region.mask is not None]
    overlap = len(masks) > 1 and sum(int(m.sum()) for m in masks) > int(np.logical_or.reduce(masks).sum())
    for number, (region, entry) in enumerate(zip(prediction.regions, values["regions"], strict=True), 1):
        if region.mask is None or region.mask.ndim != 3:
            continue
        voxels = int(region.mask.sum())
        entry["voxels"] = voxels
        entry |= {} if millilitres is None else {"volume_ml": round(voxels * millilitres, 3)}
        if beside is not None:
            entry["label"] = {"file": beside.name, "value": number}
        if beside is not None and not overlap:
            entry.pop("mask_rle")
        else:
            entry["mask_rle"]["counts"] = compress_counts(entry["mask_rle"]["counts"])
    return values


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

"""Questions to any model about any source: what a source is, who answers it, and how the answer is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry
from unimed.inference.volume import PLANES
from unimed.inference.volume_files import SUFFIXES as VOLUME_SUFFIXES
from unimed.inference.volume_files import find_volumes, read_volume
from unimed.inference.volume_pictures import write_montage
from unimed.io import raster
from unimed.io.dicom_series import kind_of_dicom
from unimed.io.images import Image
from unimed.io.images import load as load_image
from unimed.io.read import may_be_dicom, read
from unimed.io.result import Prediction
from unimed.io.volume_result import VolumeSegmentation
from unimed.names import without_suffix

IMAGE_SUFFIXES = tuple(raster.SUFFIXES)


class SourceError(ValueError):
    """A source that this model cannot be asked about, or no question."""


@dataclass(frozen=True, eq=False)
class Source:
    """A 2D image (`image`), or a volume (`array`, `geometry`)."""

    path: Path
    image: Image | None = None
    array: np.ndarray | None = None
    geometry: Geometry | None = None

    @property
    def is_volume(self) -> bool:
        return self.image is None


def looks_like_a_path(word: str) -> bool:
    """Whether a word names a file, also one that is not there: it has a known suffix or a slash, and no blank."""
    known = without_suffix(word) != word
    return " " not in word and "?" not in word and (known or "/" in word)


def find_sources(places: Sequence[str | Path]) -> list[Path]:
    """Files, DICOM series (their folders) and everything readable in other folders, in order.

    DICOM files that have no place in the patient, in folders where none has one, are images of their own.

    Raises:
        FileNotFoundError: nothing at a path, or nothing readable in a folder.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such file or folder")
        if place.is_file():
            found.append(place)
            continue
        images = [p for p in sorted(place.rglob("*")) if p.is_file() and p.name.lower().endswith(IMAGE_SUFFIXES)]
        try:
            volumes = find_volumes(place, pictures=True)
        except FileNotFoundError:
            volumes = []
        if not images and not volumes:
            raise FileNotFoundError(f"{place}: no image and no volume in it")
        found += sorted([*images, *volumes])
    return list(dict.fromkeys(found))


def open_source(path: Path, *, choices: dict | None = None, page: int | None = None, **how) -> Source:
    """Read a source: a volume where the file has three axes, else an image.

    Args:
        choices: series, phase, irregular of `read_volume`.
        page: of a file of several pages, or an axial slice of a volume: then it is an image.
        how: site, modality, window, windows of `unimed.io.images.load`.

    Raises:
        FileNotFoundError, ReadError, ImageError, WindowError: what cannot be read or shown.
    """
    if page is not None or not _may_be_volume(path):
        return Source(path, load_image(str(path), page=page, **how))
    array, geometry = read(path, **{k: v for k, v in (choices or {}).items() if v is not None})
    grey = array.ndim == 3 and not geometry.header.get("color")
    if grey and min(array.shape) > 1 and not geometry.header.get("cine"):
        if not (geometry.source_format in ("picture", "dicom") and array.shape[-1] == 3 and not geometry.is_physical):
            return Source(path, array=array, geometry=geometry)
    if array.ndim == 2 or (array.ndim == 3 and min(array.shape) == 1):
        return Source(path, load_image(str(path), **how))
    array, geometry = read_volume(path, **(choices or {}))  # says what is wrong with it
    return Source(path, array=array, geometry=geometry)


def _may_be_volume(path: Path) -> bool:
    if path.is_dir():
        return True
    if may_be_dicom(path):
        return kind_of_dicom(path) == "frames"
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def ask(model, source: Source, texts: Sequence[str], *, plane: str = "axial", how: dict, **options) -> list:
    """Answers to the texts, a `Prediction` each; for a contrastive model one `ZeroShot` over all of them.

    Args:
        how: site, modality, window; they choose the grey values of a volume.
        options: `max_new_tokens`, `task`: handed to the models that know them.

    Raises:
        SourceError: a volume for a model of images.
    """
    texts = list(texts)
    if hasattr(model, "zero_shot"):
        if source.is_volume:
            raise _no_volumes(model, source)
        return [model.zero_shot(source.image, texts)]
    if hasattr(model, "segment_slices"):
        if not source.is_volume:
            return model.predict(source.image, texts)
        return [_segmented(model, source, text, how) for text in texts]
    if source.is_volume:
        if getattr(model, "mask_head", None) is None:  # Uni-Med: one image, boxes as text
            raise _no_volumes(model, source)
        from unimed.inference.volume import predict_volume

        tokens = {k: v for k, v in options.items() if k == "max_new_tokens"}
        volume = (source.array, source.geometry)
        return predict_volume(model, volume, texts, plane=plane, name=str(source.path), **how, **tokens)
    if options.get("task") is None:
        options.pop("task", None)
    return model.predict(source.image, texts, **options)


def _segmented(model, source: Source, text: str, how: dict) -> VolumeSegmentation:
    from unimed.inference.volume_text import segment_volume
    from unimed.io.windows import modality_of

    prompts = [part.strip() for part in text.split("[SEP]")]
    found = str(source.geometry.header.get("modality", "")) or modality_of(source.path.name)
    how = how | {"modality": how.get("modality") or found}
    return segment_volume(model, source.array, source.geometry, prompts, **how)


def _no_volumes(model, source: Source) -> SourceError:
    return SourceError(
        f"{source.path}: a volume of shape {source.array.shape}, and {type(model).__name__} looks at images; "
        "choose an axial slice with --page"
    )


def save_volume_prediction(
    prediction: Prediction, volume: tuple[np.ndarray, Geometry], out: str | Path, name: str, title: str = "",
    plane: str = "axial",
) -> list[Path]:  # fmt: skip
    """Write NAME.json, NAME.nii.gz where something has a mask, and NAME.png, the montage.

    Args:
        volume: what was asked about, with its geometry.
    """
    masks = [region.mask for region in prediction.regions if region.mask is not None]
    written = prediction.save(out, name, ["json"] + ["nifti"] * bool(masks))
    window = prediction.image.window if prediction.image is not None else None
    heading = title if not prediction.text else f"{title} - {prediction.text}"
    picture = write_montage(Path(out) / f"{name}.png", *volume, prediction.regions, window, plane=plane, title=heading)
    return [*written, picture]


def save_volume_segmentation(
    result: VolumeSegmentation, array: np.ndarray, out: str | Path, name: str, formats: Sequence[str]
) -> list[Path]:
    """`result.save`, and NAME.png, the montage, where "png" is among the formats."""
    written = result.save(out, name, [form for form in formats if form != "png"])
    if "png" not in formats:
        return written
    while array.ndim > 3:
        array = array[..., 0]
    # `view` says how slices were cut: "SPL axis 0", or "as stored, axis 1".
    cut = result.view.split()
    plane = {orientation: plane for plane, orientation in PLANES.items()}.get(cut[0], "axial")
    picture = write_montage(
        Path(out) / f"{name}.png", array, result.geometry, result.prediction().regions, result.window, plane=plane,
        axis=int(cut[-1]),
    )  # fmt: skip
    return [*written, picture]

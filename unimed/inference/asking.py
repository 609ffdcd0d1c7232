"""Questions to any model about any source: what a source is, who answers it, and how the answer is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.inference.volume_files import find_volumes
from unimed.io import raster
from unimed.io.images import Image
from unimed.io.montage import montage_of
from unimed.io.result import Prediction
from unimed.io.volumes import Volume
from unimed.io.volumes import open_source as open_image_or_volume
from unimed.io.windows import modality_of
from unimed.names import without_suffix

IMAGE_SUFFIXES = tuple(raster.SUFFIXES)


class SourceError(ValueError):
    """A source that this model cannot be asked about, or no question."""


@dataclass(frozen=True, eq=False)
class Source:
    """What lies at a path: an `Image` or a `Volume`."""

    path: Path
    content: Image | Volume

    @property
    def is_volume(self) -> bool:
        return isinstance(self.content, Volume)

    @property
    def pixels(self) -> np.ndarray:
        """What an overlay or montage is drawn on."""
        return self.content.array if self.is_volume else self.content.rgb


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
            volumes = find_volumes(place, single_images=True)
        except FileNotFoundError:
            volumes = []
        if not images and not volumes:
            raise FileNotFoundError(f"{place}: no image and no volume in it")
        found += sorted([*images, *volumes])
    return list(dict.fromkeys(found))


def open_source(path: Path, *, choices: dict | None = None, page: int | None = None, **how) -> Source:
    """Read a source: a volume where the file has three axes, else an image (`unimed.io.volumes.is_volume`).

    Args:
        choices: series, phase, irregular of `read_volume`.
        page: of a file of several pages, or an axial slice of a volume: then it is an image.
        how: site, modality, window, windows of `unimed.io.images.load`.

    Raises:
        FileNotFoundError, ReadError, ImageError, WindowError: what cannot be read or shown.
    """
    return Source(path, open_image_or_volume(str(path), frame=page, **(choices or {}), **how))


def ask(model, source: Source, texts: Sequence[str], *, plane: str | None = None, how: dict, **options) -> list:
    """Answers to the texts, a `Prediction` each; for a contrastive model one over all of them (`classes`).

    Args:
        how: site, modality, window; they choose the grey values of a volume.
        options: `max_new_tokens`, `task`: handed to the models that know them.
    """
    texts, how = list(texts), dict(how)
    if source.is_volume:
        header = source.content.geometry.header
        how["modality"] = how["modality"] or str(header.get("modality", "")) or modality_of(source.path.name)
    if hasattr(model, "zero_shot"):
        return [model.predict(source.content, texts, plane=plane, **how)]
    if hasattr(model, "segment_slices"):
        return model.predict(source.content, texts, **how)
    if source.is_volume:
        options |= dict(plane=plane, **how)
    if options.get("task") is None:
        options.pop("task", None)
    return model.predict(source.content, texts, **options)


def ask_images(model, sources: Sequence[Source], texts: Sequence[str], *, batch_size: int, **options) -> list[list]:
    """As `ask` about several images at once, for models that answer in words: a list of `Prediction`s per source.

    Questions of like length stand together in a batch, and an image is encoded once for all its questions.

    Args:
        batch_size: questions answered together.
        options: as of `ask`.
    """
    if options.get("task") is None:
        options.pop("task", None)
    images = [source.content for source in sources for _ in texts]
    found = model.predict_batch(images, list(texts) * len(sources), batch_size=batch_size, **options)
    return [found[start : start + len(texts)] for start in range(0, len(found), len(texts))]


def kind_of(model) -> str:
    """What a model is asked with: "labels" that it compares, "segments" (names of targets), "answers" (any words)."""
    return "labels" if hasattr(model, "zero_shot") else "segments" if hasattr(model, "segment_slices") else "answers"


def worded(model, targets: Sequence[str]) -> list[str]:
    """Names of targets as questions that the model reads; sentences (a capital, several words) stay as they are."""
    if kind_of(model) != "answers":
        return list(targets)
    return [text if " " in text.strip() and text[:1].isupper() else f"Segment the {text}." for text in targets]


def save_volume_prediction(
    prediction: Prediction,
    array: np.ndarray,
    out: str | Path,
    name: str,
    title: str = "",
    deidentified: bool = False,
) -> list[Path]:
    """Write NAME.json, NAME.nii.gz where something has a mask, and NAME.png, the montage.

    Args:
        array: the volume that was asked about.
    """
    masks = any(region.mask is not None for region in prediction.regions)
    written = prediction.save(out, name, ["json"] + ["nifti"] * masks, deidentified=deidentified)
    heading = title if not prediction.text else f"{title} - {prediction.text}"
    return [*written, montage_of(Path(out) / f"{name}.png", prediction, array, heading)]

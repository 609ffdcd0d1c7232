"""Questions about volumes: slices in the way a radiologist sees them, masks back in the grid of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry
from unimed.io.images import load_stack
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.io.slices import VIEWS as PLANES
from unimed.io.volumes import Slices, Volume, VolumeError, cut_slices


def predict_slices(
    model, volume: Volume, text: str | Sequence[str], *, plane=None, site="", modality="", window=None,
    percentiles=None, **options,
) -> Prediction | list[Prediction]:  # fmt: skip
    """Answers to questions about a volume (one to a single text), with a 3D mask per [SEG] in the grid of the source.

    Slices are made and encoded one at a time; what is kept beside the volume is the masks, the memory of the key slices
    and of the newest fifteen others, so that memory does not grow with the number of slices (UniBiomed and Sa2VA hold
    every slice and every memory).

    Args:
        plane, site, modality, window, percentiles: see `unimed.io.volumes.cut_slices`.
        options: of `unimed.models.grounded.frames.predict_frames`: `keys`, `follow`, `compat`, `clear_absent`,
            `max_new_tokens`, `presence_threshold`.
    """
    slices, back, source = cut_slices(
        volume, plane, site=site, modality=modality, window=window, percentiles=percentiles
    )
    return _moved(model.predict_frames(slices, text, **options), back, geometry=volume.geometry, image=source)


def _moved(found, back, **changes):
    if isinstance(found, list):
        return [_moved(one, back, **changes) for one in found]
    regions = tuple(replace(r, mask=None if r.mask is None else back(r.mask)) for r in found.regions)
    return replace(found, regions=regions, **changes)


def predict_volume(
    model,
    volume,
    text: str | Sequence[str],
    *,
    plane: str = "axial",
    site: str = "",
    modality: str = "",
    window: tuple[float, float] | str | None = None,
    name: str = "",
    **options,
) -> Prediction | list[Prediction]:
    """`model.predict` for what is taken as a volume whatever its shape says.

    Args:
        volume: a path (NIfTI, NRRD, NPZ, DICOM folder ...); an array with its `Geometry`, as `read` gives them; an
            array (D, H, W) without geometry, whose first axis runs through the slices; or a list of slices, each all
            that `model.predict` takes.
        text: one question, or several about the same volume (slices are encoded once); a list gives a list.
        name: of the source in messages and results, where `volume` is an array.
        others: see `predict_slices`.

    Raises:
        VolumeError: not three axes, an unknown plane or site.
        ReadError, FileNotFoundError, ImageError, PromptError: what cannot be read or asked.
    """
    text = text if isinstance(text, str) else list(text)
    shown = dict(site=site, modality=modality, window=window)
    if isinstance(volume, list):
        slices = load_stack(volume, **shown) if volume else []
        source = slices[0].source if slices else None
        found = model.predict_frames(slices, text, **options)
        return _moved(found, lambda mask: mask, geometry=Geometry.pixels(), image=source)
    return predict_slices(model, _as_volume(volume, name), text, plane=plane, **shown, **options)


def _as_volume(volume, name: str = "") -> Volume:
    if isinstance(volume, str | Path):
        return Volume(*read(volume), str(volume))
    if isinstance(volume, tuple) and len(volume) == 2 and isinstance(volume[1], Geometry):
        return Volume(np.asarray(volume[0]), volume[1], name)
    if isinstance(volume, np.ndarray):
        return Volume(volume, name=name)
    if isinstance(volume, Volume):
        return volume
    raise VolumeError(
        f"a volume is a path, an array, an array with its Geometry, or a list of slices, not {type(volume).__name__}"
    )


__all__ = ["PLANES", "Slices", "VolumeError", "predict_slices", "predict_volume"]

"""Questions about volumes: slices in the way a radiologist sees them, masks back in the grid of the source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, reorient
from unimed.io.errors import WindowError
from unimed.io.images import ImageSource, load_stack
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.io.windows import CT_WINDOWS_HU, Window, choose_window
from unimed.structures import Region

#: How the axes of a volume must grow so that axis 0 runs through the slices and a slice is seen as usual:
#: the patient's left on the right, the back (or the feet) below.
PLANES = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}


class VolumeError(ValueError):
    """Something that is no volume, or a plane or window nobody knows."""


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
    """Answer a question about a volume, with a 3D mask per [SEG] in the grid of the source.

    Slices are made and encoded one at a time; what is kept beside the volume is the masks, the memory of the key slices
    and of the newest fifteen others, so that memory does not grow with the number of slices (UniBiomed and Sa2VA hold
    every slice and every memory).

    Args:
        model: a grounded model.
        volume: a path (NIfTI, NRRD, NPZ, DICOM folder ...); an array with its `Geometry`, as `read` gives them; an
            array (D, H, W) without geometry, whose first axis runs through the slices; or a list of slices, each all
            that `model.predict` takes.
        text: one question, or several about the same volume (slices are encoded once); a list gives a list.
        plane: "axial", "coronal" or "sagittal"; it counts only where the geometry says where the patient lies.
        site, modality, window: choose the grey values of all slices, see `unimed.io.windows.choose_window`; what was
            chosen is in `image.steps` of the result.
        name: of the source in messages and results, where `volume` is an array.
        options: `keys`, `follow`, `compat`, `clear_absent`, `max_new_tokens`, `presence_threshold` of `predict_frames`.

    Returns:
        predictions whose masks have the shape of the source array and whose geometry is that of the source.

    Raises:
        VolumeError: not three axes, an unknown plane or site.
        ReadError, FileNotFoundError, ImageError, PromptError: what cannot be read or asked.
    """
    if site and site not in CT_WINDOWS_HU:
        raise VolumeError(f"no CT window for site {site!r}; known are {', '.join(sorted(CT_WINDOWS_HU))}")
    if plane not in PLANES:
        raise VolumeError(f"unknown plane {plane!r}; known are {', '.join(PLANES)}")
    if isinstance(volume, list):
        slices = load_stack(volume, site=site, modality=modality, window=window) if volume else []
        found = model.predict_frames(slices, text, **options)
        source = slices[0].source if slices else None
        return _with(found, Geometry.pixels(), lambda mask: mask, source)
    array, geometry, known_as = _read(volume)
    name = name or known_as
    if array.ndim != 3 or 0 in array.shape:
        raise VolumeError(f"{name}: shape {array.shape} is no volume; give three axes, all longer than zero")
    if not geometry.is_physical:
        slices = Slices(array, site, geometry, modality=modality, window=window)
        found = model.predict_frames(slices, text, **options)
        return _with(found, geometry, lambda mask: mask, _source(name, array, geometry, slices.window))
    turned, turned_geometry = reorient(array, geometry, PLANES[plane])

    def back(mask: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(reorient(mask, turned_geometry, geometry.orientation)[0])

    slices = Slices(turned, site, geometry, modality=modality, window=window)
    source = _source(name, array, geometry, slices.window, f"cut as {turned_geometry.orientation}")
    return _with(model.predict_frames(slices, text, **options), geometry, back, source)


class Slices(Sequence):
    """The slices of a volume (D, H, W) as uint8, made when asked for and with one window for all.

    Args:
        array: any number type. geometry: its header holds what the file says of window, modality and polarity.
        options: of `unimed.io.windows.choose_window`.

    Raises:
        VolumeError: NaN or Inf, an unknown site.
    """

    def __init__(self, array: np.ndarray, site: str = "", geometry: Geometry | None = None, **options):
        self.array = array
        try:
            self.window: Window = choose_window(array, geometry, site=site, **options)
        except WindowError as error:
            raise VolumeError(f"the volume cannot be shown: {error}") from error

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.window(self.array[index]))


def _read(volume) -> tuple[np.ndarray, Geometry, str]:
    if isinstance(volume, str | Path):
        return *read(volume), str(volume)
    if isinstance(volume, tuple) and len(volume) == 2 and isinstance(volume[1], Geometry):
        return np.asarray(volume[0]), volume[1], "volume"
    if isinstance(volume, np.ndarray):
        return volume, Geometry.pixels(), "volume"
    raise VolumeError(
        f"a volume is a path, an array, an array with its Geometry, or a list of slices, not {type(volume).__name__}"
    )


def _source(name: str, array: np.ndarray, geometry: Geometry, window: Window, *steps: str) -> ImageSource:
    return ImageSource(name, (*geometry.steps, *steps, *window.steps), window, array.shape, geometry)


def _with(found, geometry: Geometry, back, source: ImageSource | None = None):
    if isinstance(found, list):
        return [_with(one, geometry, back, source) for one in found]

    def moved(region: Region) -> Region:
        return dataclasses.replace(region, mask=None if region.mask is None else back(region.mask))

    regions = tuple(moved(region) for region in found.regions)
    return dataclasses.replace(found, geometry=geometry, regions=regions, image=source)

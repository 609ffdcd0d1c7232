"""Images and volumes apart, by one rule, and volumes as the slices a person would look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unimed.geometry import Geometry, reorient
from unimed.io.errors import WindowError
from unimed.io.images import Image, ImageSource, finished, read_source
from unimed.io.read import ReadError, read
from unimed.io.slices import VIEWS
from unimed.io.windows import CT_WINDOWS_HU, Window, choose_window


class VolumeError(ValueError):
    """Something that is no volume, or a plane or window nobody knows."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Grey values (I, J, K) as stored, in the grid of `geometry`; `name` of the file, "" for an array."""

    array: np.ndarray
    geometry: Geometry = field(default_factory=Geometry.pixels)
    name: str = ""


def open_source(
    source,
    *,
    frame: int | None = None,
    series: str | int | None = None,
    phase: str | int | None = None,
    irregular: str = "refuse",
    **options,
) -> Image | Volume:
    """An `Image` of whatever is one, a `Volume` of whatever is that; see `is_volume` for the rule.

    Args:
        source: all that `unimed.io.images.load` takes: path (also of a DICOM folder), bytes, PIL image, array, DICOM
            dataset, (array, `Geometry`), `Image`; or a `Volume`.
        frame: cut one slice, frame or page out: the result is an image then.
        series, phase, irregular: of a path, see `unimed.io.read.read`.
        options: of `load`, for images: how grey values are mapped.

    Raises:
        FileNotFoundError, ReadError, ImageError: as `load`.
    """
    if isinstance(source, (Image, Volume)):
        return source
    choices: dict[str, Any] = {"series": series, "phase": phase, "irregular": irregular}
    choices = {name: value for name, value in choices.items() if value not in (None, "refuse")}
    array, geometry, name, steps = read_source(source, frame, **choices)
    if frame is None and is_volume(array, geometry):
        return gray_volume(array, geometry, name)
    return finished(array, geometry, name, steps, frame, None, options)


def is_volume(array: np.ndarray, geometry: Geometry) -> bool:
    """Whether stored values are a volume: three axes of grey values, each longer than one.

    Axes of one entry behind the third do not count. An array without geometry whose last axis has 3 or 4 entries is a
    colour image; the frames of a cine and the pages of a picture have no place in space and are images, one by one.
    """
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if geometry.header.get("cine") or geometry.source_format == "image" or 1 in array.shape[:3]:
        return False
    if geometry.header.get("color"):
        return array.ndim == 4
    return array.ndim == 3 and (geometry.is_physical or array.shape[-1] not in (3, 4))


def gray_volume(array: np.ndarray, geometry: Geometry, name: str = "") -> Volume:
    """Three axes of grey values; equal colour channels are taken as grey, which `geometry.steps` says.

    Raises:
        ReadError: colours, a cine, or anything else that has not three axes.
    """
    label = name or "volume"
    if geometry.header.get("cine"):
        raise ReadError(f"{label}: a cine of {len(array)} frames, not a volume; its frames have no place in space")
    if geometry.header.get("color") and array.ndim == 4:
        if not (array[..., :3] == array[..., :1]).all():
            raise ReadError(f"{label}: a color volume {array.shape}; give one channel as a file")
        header = dict(geometry.header) | {"steps": (*geometry.steps, "equal color channels taken as grey")}
        header.pop("color")
        array, geometry = array[..., 0], replace(geometry, header=header)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    color_image = array.shape[-1] == 3 and geometry.source_format in ("image", "dicom") and not geometry.is_physical
    if array.ndim != 3 or color_image:
        raise ReadError(f"{label}: {array.ndim}D data {array.shape} is no volume; give one phase or channel as a file")
    return Volume(array, geometry, name)


def read_volume(
    path: str | Path, *, series: str | int | None = None, phase: str | int | None = None, irregular: str = "refuse"
) -> tuple[np.ndarray, Geometry]:
    """As `unimed.io.read.read`; anything that has not three axes is refused.

    Raises:
        ReadError: a picture, colors, a cine, or 4D data with more than one phase; and what `read` raises.
    """
    volume = gray_volume(*read(path, series=series, phase=phase, irregular=irregular), str(path))
    return volume.array, volume.geometry


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

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # one slice at a time, no ranges
        return np.ascontiguousarray(self.window(self.array[index]))


def cut_slices(
    volume: Volume, plane: str | None = None, *, site: str = "", **options
) -> tuple[Slices, Callable[[np.ndarray], np.ndarray], ImageSource]:
    """A volume as slices a radiologist looks at, the way of a mask [slices, H, W] back, and what was done.

    Args:
        plane: "axial" (default), "coronal" or "sagittal"; it counts only where the geometry says where the patient
            lies, else slices are cut along the first axis.
        site, options: how grey values are mapped, see `unimed.io.windows.choose_window`.

    Raises:
        VolumeError: not three axes, an unknown plane or site, values that cannot be shown.
    """
    array, geometry = volume.array, volume.geometry
    if site and site not in CT_WINDOWS_HU:
        raise VolumeError(f"no CT window for site {site!r}; known are {', '.join(sorted(CT_WINDOWS_HU))}")
    if plane not in (None, *VIEWS):
        raise VolumeError(f"unknown plane {plane!r}; known are {', '.join(VIEWS)}")
    if array.ndim != 3 or 0 in array.shape:
        label = volume.name or "volume"
        raise VolumeError(f"{label}: shape {array.shape} is no volume; give three axes, all longer than zero")
    if not geometry.is_physical:
        slices = Slices(array, site, geometry, **options)
        return slices, lambda mask: mask, _source(volume, slices.window, "as stored, axis 0")
    turned, turned_geometry = reorient(array, geometry, VIEWS[plane or "axial"])

    def back(mask: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(reorient(mask, turned_geometry, geometry.orientation)[0])

    slices = Slices(turned, site, geometry, **options)
    steps = f"cut as {turned_geometry.orientation}"
    return slices, back, _source(volume, slices.window, f"{turned_geometry.orientation} axis 0", steps)


def _source(volume: Volume, window: Window, view: str, *steps: str) -> ImageSource:
    steps = (*volume.geometry.steps, *steps, *window.steps)
    return ImageSource(volume.name, steps, window, volume.array.shape, volume.geometry, view=view)

"""Questions about volumes: slices in the way a radiologist sees them, masks back in the grid of the source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, reorient
from unimed.io.read import read
from unimed.io.result import Prediction
from unimed.io.windows import CT_WINDOWS_HU, window_to_uint8
from unimed.structures import Region

#: How the axes of a volume must grow so that axis 0 runs through the slices and a slice is seen as usual:
#: the patient's left on the right, the back (or the feet) below.
PLANES = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
#: Percentiles are taken from about this many voxels.
PERCENTILE_VOXELS = 2_000_000


class VolumeError(ValueError):
    """Something that is no volume, or a plane or window nobody knows."""


def predict_volume(
    model,
    volume,
    text: str | Sequence[str],
    *,
    plane: str = "axial",
    site: str = "",
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
        site: body site whose CT window is used; by default the 0.5 and 99.5 percentiles of the volume, and 8-bit values
            as they are.
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
        found = model.predict_frames(volume, text, site=site, **options)
        return _with(found, Geometry.pixels(), lambda mask: mask)
    array, geometry, name = _read(volume)
    if array.ndim != 3 or 0 in array.shape:
        raise VolumeError(f"{name}: shape {array.shape} is no volume; give three axes, all longer than zero")
    if not geometry.is_physical:
        slices = Slices(array, site)
        return _with(model.predict_frames(slices, text, **options), geometry, lambda mask: mask)
    turned, turned_geometry = reorient(array, geometry, PLANES[plane])

    def back(mask: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(reorient(mask, turned_geometry, geometry.orientation)[0])

    return _with(model.predict_frames(Slices(turned, site), text, **options), geometry, back)


class Slices(Sequence):
    """The slices of a volume (D, H, W) as uint8, made when asked for and with one window for all.

    Args:
        array: any number type; uint8 is taken as it is, bool becomes 0 and 255.
        site: see `predict_volume`.

    Raises:
        VolumeError: NaN or Inf.
    """

    def __init__(self, array: np.ndarray, site: str = ""):
        self.array = array
        self.window = None
        if array.dtype == np.uint8 or array.dtype == np.bool_:
            return
        if site:
            self.window = CT_WINDOWS_HU[site]
            return
        step = max(1, int(np.cbrt(array.size / PERCENTILE_VOXELS)))
        values = array[::step, ::step, ::step].astype(np.float32).ravel()
        if not np.isfinite(values).all():
            raise VolumeError("the volume holds NaN or Inf; replace them before use")
        # Exact zeros are the empty border of MR and ultrasound, whose share says nothing about contrast.
        values = values[values != 0] if (values != 0).any() else values
        low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
        self.window = ((low + high) / 2, max(high - low, 1e-6))

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> np.ndarray:
        image = self.array[index]
        if self.array.dtype == np.bool_:
            return image.astype(np.uint8) * 255
        return np.ascontiguousarray(image) if self.window is None else window_to_uint8(image, *self.window)


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


def _with(found, geometry: Geometry, back):
    if isinstance(found, list):
        return [_with(one, geometry, back) for one in found]

    def moved(region: Region) -> Region:
        return dataclasses.replace(region, mask=None if region.mask is None else back(region.mask))

    return dataclasses.replace(found, geometry=geometry, regions=tuple(moved(region) for region in found.regions))

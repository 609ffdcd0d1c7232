"""Writers: an array and the geometry its reader gave, back to a file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unimed.files import write_atomic
from unimed.geometry import Geometry


def write_nifti(path: str | Path, array: np.ndarray, geometry: Geometry) -> Path:
    """Write `array` (I, J, K) as NIfTI in the grid of `geometry`; bool becomes uint8.

    Raises:
        ValueError: fewer than three axes, or a suffix that is not .nii or .nii.gz.
    """
    import nibabel

    if not str(path).endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a NIfTI file ends in .nii or .nii.gz")
    if array.ndim < 3:
        raise ValueError(f"{path}: NIfTI needs three axes, got shape {array.shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), geometry.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    return write_atomic(path, lambda temporary: nibabel.save(image, temporary))


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write named arrays as a compressed NPZ.

    Raises:
        ValueError: an object array, which could only be stored by pickling it.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype == object:
            raise ValueError(f"{path}: array {name!r} holds Python objects; store numbers or text")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            np.savez_compressed(stream, **arrays)

    return write_atomic(path, write)

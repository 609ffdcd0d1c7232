"""Writers: an array and the geometry its reader gave, back to a file that appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from unimed.structures import Geometry


def write_whole(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Call `write` with a temporary path in the folder of `path`, then rename it to `path` in one step.

    The temporary name keeps the suffix, because several libraries choose the format by it. If `write` raises,
    the temporary file is removed and what was at `path` before is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix="".join(path.suffixes[-2:]))
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        share(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


#: What the files of a result end in.
RESULT_SUFFIXES = (".json", ".jsonl", ".png", ".nii.gz", ".npz", ".seg.dcm")


def refuse_to_replace(source: str | Path, folder: str | Path, name: str) -> None:
    """Stop before a result called `name` in `folder` takes the place of the file it is made from.

    Raises:
        ValueError: `source` lies in `folder` and bears the name of a file that would be written.
    """
    source = Path(source)
    if source.parent.resolve() == Path(folder).resolve() and source.name in [name + end for end in RESULT_SUFFIXES]:
        raise ValueError(f"{source}: a result in {folder} would replace this file; choose another output folder")


def share(path: Path) -> None:
    """Give a file the permissions any new file gets: mkstemp and safetensors write files that only the owner reads."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


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
    return write_whole(path, lambda temporary: nibabel.save(image, temporary))


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

    return write_whole(path, write)

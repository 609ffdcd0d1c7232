"""NPZ archives: single members, checked before memory is taken for them, and nothing unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, lps_to_ras
from unimed.io.limits import ReadError, head_of, limits, refuse_large_file, refuse_placeholder, refuse_too_large


def read_npz(path: Path) -> tuple[np.ndarray, Geometry]:
    """CVPR-25 layout: `imgs` (D, H, W) and optional `spacing` in mm as (x, y, z), the reverse of the array's axes.

    The format carries no directions. As ITK does for want of better, columns are taken to run to the patient's left,
    rows to the back and slices to the head; `header["orientation_assumed"]` says so.
    """
    found = members(path, ("imgs", "spacing"))
    if "imgs" not in found:
        raise ReadError(f"{path}: no array `imgs`; found {', '.join(names_in(path)) or 'nothing'}")
    array = found["imgs"]
    if array.ndim != 3:
        raise ReadError(f"{path}: `imgs` must have three axes, found shape {array.shape}")
    if "spacing" not in found:
        steps = ("no `spacing` in the file: not physical, the unit is the voxel",)
        return array, Geometry.pixels(source_format="npz", header={"steps": steps})
    spacing = spacing_of(path, found["spacing"])
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag(spacing))
    header = {"orientation_assumed": True, "steps": ("directions are assumed: the format carries none",)}
    return array, Geometry(lps_to_ras(affine), source_format="npz", header=header)


def spacing_of(path: Path, spacing: np.ndarray) -> np.ndarray:
    """Three positive numbers in mm, (x, y, z).

    Raises:
        ReadError: anything else.
    """
    if spacing.shape != (3,) or spacing.dtype.kind not in "iuf":
        raise ReadError(f"{path}: `spacing` must hold three numbers, found {spacing.dtype} {spacing.shape}")
    spacing = spacing.astype(np.float64)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ReadError(f"{path}: `spacing` must be three positive numbers, found {spacing.tolist()}")
    return spacing


def names_in(path: Path) -> list[str]:
    """Names of the arrays of an NPZ, none of them read.

    Raises:
        ReadError: no zip archive.
    """
    with _opened(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def members(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays called `wanted`, those that are there; each read to its checksum, the others untouched.

    Raises:
        ReadError: damaged, pickled, or a header that promises other bytes than the archive holds.
    """
    found = {}
    with _opened(path) as archive:
        held = archive.namelist()
        for name in wanted:
            if (count := held.count(f"{name}.npy")) > 1:
                raise ReadError(f"{path}: holds {count} arrays called `{name}`")
            if count:
                found[name] = _member(path, archive, name)
    return found


def _opened(path: Path) -> zipfile.ZipFile:
    refuse_large_file(path)
    refuse_placeholder(path, head_of(path))
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeError) as error:
        raise ReadError(f"{path}: damaged or not an NPZ file ({error}); fetch the file again") from error


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        with archive.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(stream)
            held = archive.getinfo(f"{name}.npy").file_size - stream.tell()
            if dtype.hasobject:
                raise ReadError(f"{path}: `{name}` holds pickled objects, which are not read; save it as numbers")
            if shape:
                refuse_too_large(path, shape, dtype.itemsize)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if size != held or held > limits().decoded_bytes:
                raise ReadError(f"{path}: the header of `{name}` claims {dtype} {shape}, the file holds {held} bytes")
            # One byte more than promised, so that the end and with it the checksum is reached.
            data = bytearray(stream.read(size + 1))
    except ReadError:
        raise
    except Exception as error:  # zip, zlib and header errors alike
        raise ReadError(
            f"{path}: `{name}` is damaged ({type(error).__name__}: {' '.join(str(error).split())}); fetch it again"
        ) from error
    if len(data) != size:
        raise ReadError(f"{path}: `{name}` holds {len(data)} bytes, its header claims {size}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

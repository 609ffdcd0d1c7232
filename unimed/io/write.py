"""Writers: an array and the geometry its reader gave, back to a file that appears whole or not at all."""

from __future__ import annotations

import base64
import gzip
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimed.files import write_atomic
from unimed.geometry import Geometry, GeometryError, lps_to_ras

#: NIfTI's codes of what a grid is: of the scanner, aligned to something, and of what voxels are: labels.
SCANNER, ALIGNED, LABEL = 1, 2, 1002
NRRD_TYPES = {"u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "u4": "uint32", "i4": "int32",
              "u8": "uint64", "i8": "int64", "f4": "float", "f8": "double"}  # fmt: skip


def write_nifti(
    path: str | Path, array: np.ndarray, geometry: Geometry, *, labels: bool = False, allow_shear: bool = False
) -> Path:
    """Write `array` (I, J, K, ...) as NIfTI-1 in the grid of `geometry`; bool becomes uint8.

    qform and sform are both written and equal, with the codes of the source (1, scanner, for DICOM). Where the source
    was a NIfTI file whose two differ (or are unset), both are written as they were: so the result lies on its source
    for every reader, whichever it looks at first.

    Args:
        labels: say in the header that the values are labels (intent code 1002).
        allow_shear: write a sheared grid, which ITK refuses to open or puts elsewhere, in the sform alone.

    Raises:
        ValueError: fewer than three axes, or a suffix that is not .nii or .nii.gz.
        GeometryError: a sheared grid, which NIfTI cannot hold for ITK; `write_volume` takes NRRD for these.
    """
    import nibabel

    if not str(path).lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a NIfTI file ends in .nii or .nii.gz")
    if array.ndim < 3:
        raise ValueError(f"{path}: NIfTI needs three axes, got shape {array.shape}")
    source = source_forms(geometry)
    if geometry.is_sheared and not allow_shear and source is None:
        angle = np.degrees(np.arccos(geometry.shear))
        raise GeometryError(
            f"{path}: the grid is sheared (axes {angle:.1f} degrees apart): ITK cannot hold it in NIfTI; "
            'write .nrrd, or read the source with irregular="resample"'
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), geometry.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    if labels:
        image.header["intent_code"] = LABEL
    if source is not None:
        _copy_forms(image, source)
    else:
        code = SCANNER if geometry.source_format == "dicom" and geometry.is_physical else _code_of(geometry)
        image.set_sform(geometry.affine, code)
        image.set_qform(geometry.affine, 0 if geometry.is_sheared else code, strip_shears=True)
    return write_atomic(path, lambda temporary: nibabel.save(image, temporary))


def source_forms(geometry: Geometry) -> Mapping | None:
    """qform and sform of a NIfTI source that are kept: they differ, are sheared or unset, and the grid is unchanged."""
    forms = geometry.header.get("nifti")
    if forms is None or not np.allclose(forms["affine"], geometry.affine, rtol=0, atol=1e-4):
        return None
    kept = forms.get("conflict") or geometry.is_sheared or not (forms["qform_code"] or forms["sform_code"])
    return forms if kept else None


def _code_of(geometry: Geometry) -> int:
    forms = geometry.header.get("nifti") or {}
    return int(forms.get("sform_code") or forms.get("qform_code") or ALIGNED)


def _copy_forms(image, forms: Mapping) -> None:
    if forms["qform"] is not None:
        image.set_qform(forms["qform"], forms["qform_code"], strip_shears=True)
    else:
        image.set_qform(None, 0)
    if forms["sform"] is not None:
        image.set_sform(forms["sform"], forms["sform_code"])
    else:
        image.set_sform(None, 0)
    image.header["pixdim"][1:4] = forms["pixdim"]


def write_nrrd(path: str | Path, array: np.ndarray, geometry: Geometry, *, encoding: str = "gzip") -> Path:
    """Write `array` (I, J, K) as NRRD; its directions are free vectors, so that it holds sheared grids too.

    Args:
        encoding: "gzip", or "raw" for readers that take the bytes behind the header as they are.

    Raises:
        ValueError: not three axes, a type NRRD does not know, or a suffix that is not .nrrd.
    """
    if not str(path).lower().endswith(".nrrd"):
        raise ValueError(f"{path}: an NRRD file ends in .nrrd")
    array = array.astype(np.uint8) if array.dtype == np.bool_ else array
    kind = NRRD_TYPES.get(array.dtype.str[1:])
    if array.ndim != 3 or kind is None:
        raise ValueError(f"{path}: NRRD is written for three axes of numbers, got {array.dtype} {array.shape}")
    affine = lps_to_ras(geometry.affine)  # the same step leads back to LPS

    def vector(values) -> str:
        return "(" + ",".join(repr(float(v)) for v in values) + ")"

    lines = ["NRRD0004", f"type: {kind}", "dimension: 3", "sizes: " + " ".join(map(str, array.shape))]
    if geometry.is_physical:
        lines += ["space: left-posterior-superior", "space directions: " + " ".join(map(vector, affine[:3, :3].T))]
    lines += ["kinds: domain domain domain", "endian: little", f"encoding: {encoding}"]
    if geometry.is_physical:
        lines.append("space origin: " + vector(affine[:3, 3]))
    data = array.astype(array.dtype.newbyteorder("<")).tobytes(order="F")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            stream.write(("\n".join(lines) + "\n\n").encode())
            stream.write(data if encoding == "raw" else gzip.compress(data, compresslevel=6, mtime=0))

    return write_atomic(path, write)


def write_volume(path: str | Path, array: np.ndarray, geometry: Geometry, *, labels: bool = True) -> Path:
    """`write_nifti`, but a sheared grid that ITK could not open as NIfTI becomes `.nrrd` beside it, with a warning.

    Returns:
        the path that was written.
    """
    path = Path(path)
    if geometry.is_sheared and source_forms(geometry) is None and array.ndim == 3:
        other = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".nrrd")
        warnings.warn(f"{other}: NRRD instead of NIfTI, which cannot hold the sheared grid for ITK", stacklevel=2)
        return write_nrrd(other, array, geometry)
    return write_nifti(path, array, geometry, labels=labels)


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write named arrays as a compressed NPZ.

    Raises:
        ValueError: an object array, which could only be stored by pickling it.
    """
    stored: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in stored.items():
        if array.dtype == object:
            raise ValueError(f"{path}: array {name!r} holds Python objects; store numbers or text")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            np.savez_compressed(stream, **stored)

    return write_atomic(path, write)


def png_url(image: np.ndarray) -> str:
    """An image HxW or HxWx3 uint8 as the data URL of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"

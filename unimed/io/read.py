"""The one door for files: a path in, an array and its `Geometry` out.

Nothing is unpickled, no value is rescaled silently, and no memory is taken for what a header merely claims. What a
reader decided, converted or assumed is in `geometry.steps`; the table of formats is in `docs/data.md`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, GeometryError
from unimed.io.dicom import read_dicom
from unimed.io.dicom_series import BESIDE, is_dicom, read_series
from unimed.io.dicom_series import SUFFIXES as DICOM_SUFFIXES
from unimed.io.itk import read_meta_image, read_nrrd
from unimed.io.limits import (
    Limits,
    ReadError,
    head_of,
    limited,
    refuse_large_file,
    refuse_placeholder,
)
from unimed.io.nifti import read_mgh, read_nifti
from unimed.io.npz import read_npz
from unimed.io.raster import SUFFIXES as RASTER_SUFFIXES
from unimed.io.raster import decode, shown, steps_of

#: Suffixes of volumes; `read` also takes pictures, DICOM files of any name, and folders of DICOM files.
VOLUME_SUFFIXES = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".mgz", ".mgh", ".img", ".hdr",
    ".dcm", ".dicom", ".ima",
)  # fmt: skip


#: Suffixes of other formats; `.img` is also what some archives call DICOM files.
_NO_DICOM = (*(s for s in VOLUME_SUFFIXES if s not in (*DICOM_SUFFIXES, ".img")), *RASTER_SUFFIXES)


def may_be_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name, or by its mark where its name says nothing (UIDs, no suffix)."""
    name = path.name.lower()
    if name in BESIDE or name.startswith("."):
        return False
    return name.endswith(DICOM_SUFFIXES) or (not name.endswith(_NO_DICOM) and is_dicom(path))


def read(
    path: str | Path,
    *,
    series: str | int | None = None,
    phase: str | int | None = None,
    frame: int | None = None,
    irregular: str = "refuse",
    detached: bool = True,
    limits: Limits | None = None,
) -> tuple[np.ndarray, Geometry]:
    """Read an image or volume, the format told by the suffix; a folder is read as a DICOM series.

    Args:
        series: of a folder with several DICOM series: UID, number or description. The error without it lists them.
        phase: of data with several phases: its number, or for DICOM also its value. "all" keeps all phases of a NIfTI,
            NRRD or MetaImage file as a fourth axis.
        frame: of a DICOM cine: one frame instead of all; of a TIFF of several pages: the page, which it needs.
        irregular: of DICOM slices that are not one complete, evenly spaced, aligned stack: "refuse" them, or "resample"
            them to one, which `geometry.steps` says.
        detached: whether a header may name a data file in its own folder; False for files from elsewhere (uploads).
        limits: instead of those of the environment, see `unimed.io.limits`.

    Returns:
        The array and its geometry. Pictures give HxW or HxWx3 as a viewer shows them, in the depth of the file
        (`unimed.io.raster`); volumes give (I, J, K) in the order of the file, with the affine that says where each axis
        leads. `geometry.header["color"]` names the last axis of color volumes.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ReadError: unknown suffix, damaged or truncated file, several series or phases without a choice, irregular
            slices, NaN or Inf voxels, complex or structured voxels, singular affine, or more than the limits allow.
        ValueError: unknown `irregular`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    with limited(limits):
        return _read(path, series, phase, frame, irregular, detached)


def _read(path: Path, series, phase, frame, irregular: str, detached: bool) -> tuple[np.ndarray, Geometry]:
    reader, options = _reader_of(path), {"phase": phase}
    if reader is read_series:
        options |= {"series": series, "irregular": irregular}
    elif series is not None:
        raise ReadError(f"{path}: series= chooses within a folder of DICOM files, this is one file")
    if reader is read_dicom:
        options |= {"frame": frame, "irregular": irregular}
    elif reader is _read_raster:
        options = {"page": frame}
    elif frame is not None:
        raise ReadError(f"{path}: frame= chooses a frame of a DICOM cine; this is none")
    if reader in (read_nrrd, read_meta_image):
        options |= {"detached": detached}
    if reader in (_read_raster, read_npz):
        options.pop("phase", None)
        if phase not in (None, 0, "0", "all"):
            raise ReadError(f"{path}: there are no phases in this format")
    if not detached and path.name.lower().endswith((".hdr", ".img")):
        raise ReadError(f"{path}: header and data lie in two files; give them in one, such as .nii.gz")
    if path.is_file():
        if path.stat().st_size == 0:
            raise ReadError(f"{path}: the file is empty")
        refuse_large_file(path)
        refuse_placeholder(path, head_of(path))
    try:
        with warnings.catch_warnings():
            # What libraries have to say of odd headers is either an error here or in the steps.
            warnings.filterwarnings("ignore", module=r"(pydicom|nibabel|numpy)")
            array, geometry = reader(path, **options)
        return _checked(str(path), array), geometry
    except ReadError as error:
        raise error if str(path.name) in str(error) else ReadError(f"{path}: {error}") from error
    except GeometryError as error:
        raise ReadError(f"{path}: {error}; repair the header before use") from error
    except MemoryError as error:
        raise ReadError(f"{path}: there is not enough memory for it; lower UNIMED_MAX_BYTES to refuse it") from error
    except Exception as error:  # each library has its own idea of what a damaged file raises
        if isinstance(error, ValueError) and "irregular" in str(error):
            raise
        raise ReadError(f"{path}: damaged, or of another format than its suffix says ({_reason(error)})") from error


def _checked(where: str, array: np.ndarray) -> np.ndarray:
    """An array of real, finite numbers in the byte order of this machine."""
    if array.size == 0:
        raise ReadError(f"{where}: shape {array.shape} holds no voxel")
    if array.dtype.kind not in "iufb":
        raise ReadError(f"{where}: values of the type {array.dtype} are not read; save real numbers")
    if array.dtype.kind == "f":
        broken = sum(int((~np.isfinite(plane)).sum()) for plane in (array if array.ndim > 2 else [array]))
        if broken:
            raise ReadError(f"{where}: {broken} voxels are NaN or Inf; replace them before use")
    if array.dtype.itemsize > 8 or array.dtype == np.float16:
        array = array.astype(np.float32)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def read_bytes(data: bytes, name: str) -> tuple[np.ndarray, Geometry]:
    """`read` for a picture or DICOM file that lies in memory, such as a member of a tar file.

    Args:
        name: where it comes from, for messages; nothing is opened.

    Raises:
        ReadError: as `read`; or neither an image nor DICOM.
    """
    try:
        refuse_placeholder(name, data[:512])
        # DICOM has its mark after a preamble of 128 bytes.
        dicom = data[128:132] == b"DICM"
        array, geometry = read_dicom(io.BytesIO(data)) if dicom else _read_raster(data, name)
        return _checked(name, array), geometry
    except ReadError as error:
        raise error if name in str(error) else ReadError(f"{name}: {error}") from error
    except Exception as error:  # each library has its own idea of what a damaged file raises
        raise ReadError(f"{name}: damaged or not an image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """What a library said, on one line and without the address of a stream in memory."""
    message = " ".join(re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "the stored bytes", str(error)).split())
    # What a program would have to do about it is no help to who gave the file.
    return re.sub(r"\.? Use force=True.*|(?<=image file) the stored bytes$", "", message) or type(error).__name__


def _reader_of(path: Path) -> Callable[..., tuple[np.ndarray, Geometry]]:
    if path.is_dir():
        return read_series
    name = path.name.lower()
    for suffixes, reader in _READERS:
        if name.endswith(suffixes):
            return reader
    if is_dicom(path):
        return read_dicom  # named by its UID, or without suffix
    refuse_placeholder(path, head_of(path))
    known = ", ".join(suffix for suffixes, _ in _READERS for suffix in suffixes)
    what = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix, and no DICOM file"
    raise ReadError(f"{path}: {what}; known are {known}, DICOM files of any name, and folders of them")


def _read_raster(source: Path | bytes, name: str = "", page: int | None = None) -> tuple[np.ndarray, Geometry]:
    raster = decode(source, name=name or str(source), page=page)
    header = {"orientation": raster.orientation, "bits": raster.bits, "steps": steps_of(raster)}
    return shown(raster), Geometry.pixels(source_format="image", header=header)


_READERS = (
    ((".nii", ".nii.gz", ".img", ".hdr"), read_nifti),
    ((".nrrd", ".nhdr"), read_nrrd),
    ((".mha", ".mhd"), read_meta_image),
    ((".mgz", ".mgh"), read_mgh),
    ((".npz",), read_npz),
    ((".dcm", ".dicom", ".ima"), read_dicom),
    (RASTER_SUFFIXES, _read_raster),
)

"""Readers: a path in, an array and its `Geometry` out. Nothing is unpickled and no value is rescaled silently."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, GeometryError, lps_to_ras
from unimed.io.errors import ReadError
from unimed.io.raster import SUFFIXES as PICTURE_SUFFIXES
from unimed.io.raster import decode, shown, steps_of

#: Arrays larger than this are refused before memory is taken for them: a header may claim anything.
MAX_VOXELS = 2**31


def read(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Read an image or volume, the format told by the suffix; a folder is read as a DICOM series.

    Returns:
        The array and its geometry. Pictures give HxW or HxWx3 as a viewer shows them, in the depth
        of the file (`unimed.io.raster`); volumes give (I, J, K)
        in the order of the file, with the affine that says where each axis leads.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ReadError: unknown suffix, damaged or truncated file, NaN or Inf voxels, singular affine, too many voxels.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    reader = _reader_of(path)
    if path.is_file() and path.stat().st_size == 0:
        raise ReadError(f"{path}: the file is empty")
    try:
        array, geometry = reader(path)
    except ReadError:
        raise
    except GeometryError as error:
        raise ReadError(f"{path}: {error}; repair the header before use") from error
    except Exception as error:  # each library has its own idea of what a damaged file raises
        raise ReadError(f"{path}: damaged or not of its suffix's format ({_reason(error)})") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ReadError(f"{path}: {int((~np.isfinite(array)).sum())} voxels are NaN or Inf; replace them before use")
    return array, geometry


def read_bytes(data: bytes, name: str) -> tuple[np.ndarray, Geometry]:
    """`read` for a picture or DICOM file that lies in memory, such as a member of a tar file.

    Args:
        name: where it comes from, for messages; nothing is opened.

    Raises:
        ReadError: as `read`; or neither a picture nor DICOM.
    """
    try:
        if data[128:132] != b"DICM":  # DICOM has its mark after a preamble of 128 bytes
            return _read_picture(data, name)
        array, geometry = _read_dicom(io.BytesIO(data))
    except ReadError as error:
        raise (error if str(error).startswith(name) else ReadError(f"{name}: {error}")) from error
    except Exception as error:  # each library has its own idea of what a damaged file raises
        raise ReadError(f"{name}: damaged or no picture ({_reason(error)})") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ReadError(f"{name}: {int((~np.isfinite(array)).sum())} pixels are NaN or Inf")
    return array, geometry


def _reason(error: Exception) -> str:
    """What a library said, on one line and without the address of a stream in memory."""
    said = " ".join(re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "the stored bytes", str(error)).split())
    return f"{type(error).__name__}: {said}"


def _reader_of(path: Path) -> Callable[[Path], tuple[np.ndarray, Geometry]]:
    if path.is_dir():
        return _read_dicom_series
    name = path.name.lower()
    for suffixes, reader in _READERS:
        if name.endswith(suffixes):
            return reader
    known = ", ".join(suffix for suffixes, _ in _READERS for suffix in suffixes)
    raise ReadError(f"{path}: unknown suffix; known are {known}, and a folder of DICOM files")


def _refuse_too_large(path: Path, shape: tuple[int, ...]) -> None:
    voxels = 1
    for extent in shape:
        voxels *= int(extent)
    if voxels > MAX_VOXELS:
        raise ReadError(f"{path}: the header claims {voxels} voxels {tuple(shape)}, more than the limit {MAX_VOXELS}")


def _read_picture(source: Path | bytes, name: str = "") -> tuple[np.ndarray, Geometry]:
    raster = decode(source, name=name or str(source))
    array = shown(raster)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ReadError(f"{name or source}: {int((~np.isfinite(array)).sum())} pixels are NaN or Inf")
    header = {"orientation": raster.orientation, "bits": raster.bits, "steps": steps_of(raster)}
    return array, Geometry.pixels(source_format="picture", header=header)


def _read_nifti(path: Path) -> tuple[np.ndarray, Geometry]:
    import nibabel

    image = nibabel.load(path)
    _refuse_too_large(path, image.shape)
    if len(image.shape) < 3:
        raise ReadError(f"{path}: expected at least three axes, found shape {image.shape}")
    header = {"zooms": tuple(float(v) for v in image.header.get_zooms())}
    array = np.asanyarray(image.dataobj)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return array, Geometry(image.affine, source_format="nifti", header=header)


def _read_nrrd(path: Path) -> tuple[np.ndarray, Geometry]:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    _refuse_too_large(path, reader.GetSize())
    image = reader.Execute()
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ReadError(f"{path}: expected a scalar volume of three axes, found {image.GetSize()}")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # SimpleITK hands numpy the axes in reverse order (k, j, i).
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    return array, Geometry(lps_to_ras(affine), source_format="nrrd")


def _read_npz(path: Path) -> tuple[np.ndarray, Geometry]:
    """CVPR-25 layout: `imgs` (D, H, W) and optional `spacing` in mm as (x, y, z), the reverse of the array's axes.

    The format carries no directions. As ITK does for want of better, columns are taken to run to the patient's left,
    rows to the back and slices to the head; `header["orientation_assumed"]` says so.
    """
    with zipfile.ZipFile(path) as archive:
        _refuse_false_header(path, archive)
        if archive.testzip() is not None:
            raise ReadError(f"{path}: checksum of {archive.testzip()} is wrong; fetch the file again")
    with np.load(path, allow_pickle=False) as archive:
        if "imgs" not in archive:
            raise ReadError(f"{path}: no array `imgs`; found {', '.join(archive.files) or 'nothing'}")
        array = archive["imgs"]
        spacing = np.asarray(archive["spacing"], dtype=np.float64) if "spacing" in archive else None
    if array.ndim != 3:
        raise ReadError(f"{path}: `imgs` must have three axes, found shape {array.shape}")
    if spacing is None:
        return array, Geometry.pixels(source_format="npz")  # not even a unit is known
    if spacing.shape != (3,):
        raise ReadError(f"{path}: `spacing` must hold three numbers, found shape {spacing.shape}")
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag(spacing))
    return array, Geometry(lps_to_ras(affine), source_format="npz", header={"orientation_assumed": True})


def _refuse_false_header(path: Path, archive: zipfile.ZipFile) -> None:
    """The array's header must promise what the archive holds: numpy would take memory for the promise first."""
    if "imgs.npy" not in archive.namelist():
        return
    with archive.open("imgs.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        held = archive.getinfo("imgs.npy").file_size - stream.tell()
    if dtype.hasobject:
        raise ReadError(f"{path}: `imgs` holds pickled objects, which are not read; save it as an array of numbers")
    _refuse_too_large(path, shape)
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize != held:
        raise ReadError(f"{path}: the header of `imgs` claims {dtype} {shape}, the file holds {held} bytes")


def _pixels_of_dicom(path: Path, dataset) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    _refuse_too_large(path, (frames, int(dataset.Rows), int(dataset.Columns)))
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(dataset.pixel_array, dataset)
        # The entries of 16 bit hold 8 bit in their upper half, or fill all 16; both end in the same colour.
        return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours
    array = apply_modality_lut(dataset.pixel_array, dataset)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _has_place(dataset) -> bool:
    return "ImageOrientationPatient" in dataset and "ImagePositionPatient" in dataset


def _window_of_dicom(dataset) -> dict:
    """{"window": (level, width)} where the file says how it is to be looked at; the first of several."""
    values = []
    for name in ("WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        value = value[0] if hasattr(value, "__len__") and not isinstance(value, str) and len(value) else value
        values.append(float(value) if value not in (None, "") else 0.0)
    return {"window": tuple(values)} if values[1] > 0 else {}


def _dicom_plane(dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In-plane directions with spacing (column index, row index) and the position of the first pixel, LPS mm."""
    row_direction, column_direction = np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = (float(v) for v in dataset.PixelSpacing)
    origin = np.array(dataset.ImagePositionPatient, dtype=np.float64)
    return row_direction * between_columns, column_direction * between_rows, origin


def _read_dicom(path: Path) -> tuple[np.ndarray, Geometry]:
    import pydicom

    dataset = pydicom.dcmread(path)
    array = _pixels_of_dicom(path, dataset)
    header = {"modality": str(dataset.get("Modality", "")), "photometric": str(dataset.PhotometricInterpretation)}
    header |= _window_of_dicom(dataset)
    if not _has_place(dataset) or array.ndim != 2:
        return array, Geometry.pixels(source_format="dicom", header=header)
    volume, affine = _stack([(array, *_dicom_plane(dataset))], float(dataset.get("SliceThickness", 0) or 1.0))
    if not isinstance(path, io.BytesIO):
        header["files"] = (str(path),)
    return volume, Geometry(lps_to_ras(affine), source_format="dicom", header=header)


def _stack(planes, single_slice_thickness_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Planes of one orientation, sorted along their normal, to (columns, rows, slices) and an LPS affine."""
    _, along_columns, along_rows, first = planes[0]
    normal = np.cross(along_columns, along_rows)
    normal /= np.linalg.norm(normal)
    planes = sorted(planes, key=lambda plane: float(plane[3] @ normal))
    first = planes[0][3]
    if len(planes) > 1:
        step = (planes[-1][3] - first) / (len(planes) - 1)
    else:
        step = normal * single_slice_thickness_mm
    affine = np.eye(4)
    affine[:3] = np.column_stack((along_columns, along_rows, step, first))
    return np.stack([plane[0].T for plane in planes], axis=-1), affine


def _read_dicom_series(folder: Path) -> tuple[np.ndarray, Geometry]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    datasets = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            dataset = pydicom.dcmread(path)
        except InvalidDicomError:
            continue  # notes and DICOMDIR leftovers may lie beside the slices
        if "PixelData" in dataset:
            datasets.append((path, dataset))
    if not datasets:
        raise ReadError(f"{folder}: no DICOM image in this folder")
    series = {str(dataset.get("SeriesInstanceUID", "")) for _, dataset in datasets}
    if len(series) > 1:
        raise ReadError(f"{folder}: {len(series)} DICOM series in one folder; give each a folder of its own")
    planes = []
    for path, dataset in datasets:
        if not _has_place(dataset):
            raise ReadError(f"{path}: no ImageOrientationPatient or ImagePositionPatient, its place is unknown")
        planes.append((_pixels_of_dicom(path, dataset), *_dicom_plane(dataset)))
    if len({plane[0].shape for plane in planes}) > 1:
        raise ReadError(f"{folder}: slices of different size in one series")
    for path, plane in zip((p for p, _ in datasets), planes, strict=True):
        if not (np.allclose(plane[1], planes[0][1], atol=1e-3) and np.allclose(plane[2], planes[0][2], atol=1e-3)):
            raise ReadError(f"{path}: the slice is tilted against the others or has another pixel spacing")
    first = datasets[0][1]
    volume, affine = _stack(planes, float(first.get("SliceThickness", 0) or 1.0))
    _refuse_uneven_slices(folder, planes)
    header = {"modality": str(first.get("Modality", "")), "photometric": str(first.PhotometricInterpretation)}
    header |= _window_of_dicom(first)
    # In the order of the volume's slices: whoever writes DICOM of the same patient has to read their headers again.
    normal = np.cross(planes[0][1], planes[0][2])
    order = sorted(range(len(planes)), key=lambda index: float(planes[index][3] @ normal))
    header["files"] = tuple(str(datasets[index][0]) for index in order)
    return volume, Geometry(lps_to_ras(affine), source_format="dicom", header=header)


def _refuse_uneven_slices(folder: Path, planes) -> None:
    normal = np.cross(planes[0][1], planes[0][2])
    normal /= np.linalg.norm(normal)
    gaps = np.diff(sorted(float(plane[3] @ normal) for plane in planes))
    if len(gaps) and (gaps.min() < 1e-3 or gaps.max() - gaps.min() > 0.1 * float(np.median(gaps))):
        if gaps.min() < 1e-3:
            raise ReadError(f"{folder}: two slices lie at the same place; remove the duplicate")
        if gaps.max() > 1.5 * float(np.median(gaps)):
            # An affine has one spacing: everything behind the hole would lie at the wrong place.
            raise ReadError(
                f"{folder}: slices are {np.median(gaps):.3f} mm apart but once {gaps.max():.3f} mm: "
                "a slice is missing; export the series again"
            )
        warnings.warn(
            f"{folder}: slice gaps vary from {gaps.min():.3f} to {gaps.max():.3f} mm; the mean is taken",
            stacklevel=2,
        )


_READERS = (
    ((".nii", ".nii.gz"), _read_nifti),
    ((".nrrd", ".nhdr", ".mha"), _read_nrrd),
    ((".npz",), _read_npz),
    ((".dcm", ".dicom"), _read_dicom),
    (PICTURE_SUFFIXES, _read_picture),
)

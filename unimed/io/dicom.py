"""Single DICOM files: slices, pictures, cines, enhanced multi-frame objects and dose grids."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimed.geometry import Geometry, lps_to_ras
from unimed.io.dicom_phases import choose_planes
from unimed.io.limits import (
    ReadError,
    decompress,
    head_of,
    refuse_large_file,
    refuse_placeholder,
    refuse_too_large,
)
from unimed.io.slice_stack import Plane, Stack, make_plane, stack

DEFLATED = b"1.2.840.10008.1.2.1.99"
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
#: JPEG, JPEG-LS and JPEG 2000 end a frame with this marker, whatever follows is padding.
END_OF_IMAGE = b"\xff\xd9"


def open_dicom(path: Path | io.BytesIO, pixels: bool = True):
    """A data set, its pixels left out where they are not wanted.

    Raises:
        ReadError: too large, a placeholder of a file, or deflated data that are cut.
        pydicom.errors.InvalidDicomError: no DICOM.
    """
    import pydicom

    start = head_of(path, 4096)
    if isinstance(path, Path):
        refuse_large_file(path)
        refuse_placeholder(path, start)
    where = path if isinstance(path, Path) else "stored bytes"
    if DEFLATED in start:
        # pydicom would inflate whatever is there: it is done here first, within the limit. The first element of the
        # file says how long the header is that precedes the deflated data.
        begin = 144 + int.from_bytes(start[140:144], "little")
        with open(path, "rb") if isinstance(path, Path) else io.BytesIO(path.getbuffer()) as stream:
            stream.seek(begin)
            decompress(stream, "deflate", where)
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except pydicom.errors.InvalidDicomError:
        if isinstance(path, io.BytesIO):
            raise
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
        if "SOPClassUID" not in dataset:
            raise
    # Old scanners wrote the data set alone, without the mark and the header that names its encoding.
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if implicit else
            pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        )  # fmt: skip
    return dataset


def read_dicom(
    path: Path | io.BytesIO, phase=None, frame: int | None = None, irregular: str = "refuse"
) -> tuple[np.ndarray, Geometry]:
    """One file.

    A slice whose place is known is a volume of one slice (columns, rows, 1); one without is a picture (rows, columns).
    An enhanced object whose frames have places is a volume (columns, rows, slices). Other frames are a cine
    (frames, rows, columns). Colors are RGB in a last axis of 3. Values are rescaled, per frame where the file says so;
    MONOCHROME1 stays as stored and `header["photometric"]` says so.
    """
    dataset = open_dicom(path)
    where = str(path) if isinstance(path, Path) else "stored bytes"
    if dataset.get("Modality") == "SEG" or "SegmentSequence" in dataset:
        raise ReadError(f"{where}: a DICOM segmentation, not an image; give the series it belongs to")
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = dataset.get("Modality") or getattr(dataset.get("SOPClassUID", ""), "name", "") or "unknown"
        raise ReadError(f"{where}: a DICOM object without an image (kind {kind})")
    header = header_of(dataset)
    if planes := planes_of_frames(dataset, where, header):
        if frame is not None:
            raise ReadError(f"{where}: its frames are slices of a volume; frame= is for cines")
        chosen, note = choose_planes(planes, phase, where)
        return volume_of(stack(chosen, where, irregular), header, note, [where] if isinstance(path, Path) else [])
    if phase not in (None, 0, "0", "all"):
        raise ReadError(f"{where}: there are no phases in this file; frame= chooses a frame of a cine")
    array = rescaled(decoded(dataset, where, header), dataset)
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        return _cine(array, dataset, header, frame, where)
    if frame not in (None, 0):
        raise ReadError(f"{where}: there is only one frame, number 0")
    if not has_place(dataset) or header["photometric"] not in MONOCHROME:
        header |= {"files": (where,)} if isinstance(path, Path) else {}
        return array, Geometry.pixels(source_format="dicom", header=header)
    plane = plane_of(dataset, where, lambda: array)
    return volume_of(stack([plane], where), header, (), [where] if isinstance(path, Path) else [])


def volume_of(made: Stack, header: dict, note, files: list[str]) -> tuple[np.ndarray, Geometry]:
    """Array and geometry of a stack; `files` are named in the header unless it was resampled."""
    header = dict(header) | {"steps": (*header.get("steps", ()), *note, *made.steps)}
    if made.planes and files:
        header["files"] = tuple(files)
        if all("frame" in plane.tags for plane in made.planes):
            header["frames"] = tuple(plane.tags.get("frame") for plane in made.planes)
    return made.array, Geometry(lps_to_ras(made.affine), source_format="dicom", header=header)


def _cine(array: np.ndarray, dataset, header: dict, frame: int | None, where: str):
    count = array.shape[0]
    header |= {"cine": True, "steps": (*header["steps"], f"{count} frames without a place in space: a cine")}
    if frame is not None:
        if not 0 <= int(frame) < count:
            raise ReadError(f"{where}: frame {frame} is not there; there are 0 to {count - 1}")
        array = array[int(frame)]
        header = {k: v for k, v in header.items() if k != "cine"} | {"steps": (f"frame {frame} of {count} taken",)}
    return array, Geometry.pixels(source_format="dicom", header=header)


def header_of(dataset) -> dict[str, Any]:
    """What readers and writers further on may need: modality, photometric interpretation, window, description."""
    header = {
        "modality": str(dataset.get("Modality", "") or ""),
        "photometric": str(dataset.get("PhotometricInterpretation", "") or ""),
        "series_description": str(dataset.get("SeriesDescription", "") or ""),
        "body_part": str(dataset.get("BodyPartExamined", "") or ""),
        "bits_stored": int(dataset.get("BitsStored", 0) or 0),
        "steps": (),
    }
    return header | window_of(dataset) | voi_lut_of(dataset)


def voi_lut_of(dataset) -> dict:
    """{"voi_lut": (first stored value, bits of an entry, entries)} where the file brings a table of grey values."""
    sequence = dataset.get("VOILUTSequence")
    if not sequence:
        return {}
    count, first, bits = (int(value) for value in sequence[0].LUTDescriptor)
    data = sequence[0].LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, dtype="<u2" if len(data) >= 2 * (count or 2**16) else np.uint8)
    entries = tuple(int(value) for value in np.atleast_1d(data)[: count or 2**16])
    return {"voi_lut": (first, bits, entries)} if entries and 1 <= bits <= 16 else {}


def window_of(dataset) -> dict:
    """{"window": (level, width)} where the file says how it is to be looked at; the first of several."""
    groups = [group for group in _groups(dataset) if "FrameVOILUTSequence" in group]
    source = groups[0].FrameVOILUTSequence[0] if groups else dataset
    values = []
    for name in ("WindowCenter", "WindowWidth"):
        value = source.get(name)
        value = value[0] if hasattr(value, "__len__") and not isinstance(value, str) and len(value) else value
        try:
            values.append(float(value) if value not in (None, "") and not hasattr(value, "__len__") else 0.0)
        except ValueError:
            values.append(0.0)
    return {"window": tuple(values)} if values[1] > 0 and np.isfinite(values).all() else {}


def has_place(dataset) -> bool:
    """Whether the place of the slice in the patient is stated."""
    return bool(dataset.get("ImageOrientationPatient") and dataset.get("ImagePositionPatient"))


def plane_of(dataset, name: str, load, tags: dict | None = None) -> Plane:
    """The plane of a file that holds one slice.

    Raises:
        ReadError: an attribute that places it is missing or wrong.
    """
    if not has_place(dataset):
        raise ReadError(f"{name}: no ImageOrientationPatient or ImagePositionPatient, its place is unknown")
    if not dataset.get("PixelSpacing"):
        raise ReadError(f"{name}: no PixelSpacing (0028,0030), the size of its pixels is unknown")
    return make_plane(
        name, dataset.ImageOrientationPatient, dataset.ImagePositionPatient, dataset.PixelSpacing,
        shape=(int(dataset.Rows), int(dataset.Columns)), load=load, tags=tags or {},
        thickness_mm=number_of(dataset, "SliceThickness"), stated_gap_mm=number_of(dataset, "SpacingBetweenSlices"),
        number=None if (n := number_of(dataset, "InstanceNumber")) is None else int(n),
        expected=None if (n := number_of(dataset, "ImagesInAcquisition")) is None else int(n),
    )  # fmt: skip


def number_of(dataset, name: str) -> float | None:
    """A number of the header, None where it is missing, empty, zero or none."""
    value = dataset.get(name)
    try:
        return float(value) if value not in (None, "") and float(value) and np.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


# Pixels --------------------------------------------------------------------------------------------------------------


def stored_frames(dataset, count: int) -> list[bytes]:
    """The compressed frames of an object as they are stored, `count` of them."""
    from pydicom.encaps import generate_frames

    return list(generate_frames(dataset.PixelData, number_of_frames=count))


def decoded(dataset, where: str, header: dict | None = None) -> np.ndarray:
    """Stored values: (rows, columns), frames before them where there are several, 3 for RGB behind them.

    Every color space becomes RGB, of which `header` is told; nothing is rescaled.

    Raises:
        ReadError: over the limits, or fewer or more bytes than the header promises.
    """
    from pydicom.pixels import apply_color_lut

    frames, samples = int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.get("SamplesPerPixel", 1) or 1)
    shape = (frames, int(dataset.Rows), int(dataset.Columns), samples)
    refuse_too_large(where, shape, max(1, int(dataset.BitsAllocated) // 8))
    _refuse_short(dataset, where, shape)
    array = dataset.pixel_array
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)[..., :3]
        if array.dtype == np.uint16:
            array = (array >> 8).astype(np.uint8)  # the table's high bytes, as displays show them
    if header is not None and photometric not in MONOCHROME:
        header["photometric"] = "RGB"
        if photometric != "RGB":
            header["steps"] = (*header.get("steps", ()), f"{photometric} converted to RGB")
    return array


def _refuse_short(dataset, where: str, shape: tuple[int, ...]) -> None:
    """Bytes of the pixels against the header; compressed frames must reach their end marker."""
    name = next((n for n in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if n in dataset), None)
    if name is None:
        raise ReadError(f"{where}: the file holds no pixels")
    data, meta = dataset[name].value, getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if syntax is not None and syntax.is_compressed and syntax.is_encapsulated:
        from pydicom.encaps import generate_frames

        frames = 0
        for frame in generate_frames(data, number_of_frames=shape[0]):
            frames += 1
            if "JPEG" not in syntax.name:
                continue
            if END_OF_IMAGE not in frame[-16:]:
                raise ReadError(f"{where}: frame {frames} is cut, it has no end; fetch the file again")
            # A decoder takes memory for what the frame claims, whatever the header says.
            if (claimed := _size_of_frame(frame)) not in (None, shape[1:3]):
                raise ReadError(f"{where}: frame {frames} is {claimed} pixels, its header says {shape[1:3]}")
        if frames != shape[0]:
            raise ReadError(f"{where}: holds {frames} frames, its header promises {shape[0]}")
        return
    bits = int(np.prod(shape, dtype=np.int64)) * int(dataset.BitsAllocated)
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        bits = bits // 3 * 2
    expected = (bits + 7) // 8
    if len(data) < expected:
        raise ReadError(f"{where}: the file is short: {len(data)} bytes of pixels, its header promises {expected}")
    if len(data) > expected + 1 and bytes(data[expected:]).strip(b"\0"):
        raise ReadError(f"{where}: {len(data) - expected} bytes more than its header promises; header or file is wrong")


def _size_of_frame(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream states for itself; None where they are not found."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # SIZ follows the start of every JPEG 2000 code stream
        right, bottom, left, top = (int.from_bytes(frame[k : k + 4], "big") for k in (8, 12, 16, 20))
        return bottom - top, right - left
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker == 0xFF:
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return tuple(int.from_bytes(frame[k : k + 2], "big") for k in (place + 5, place + 7))
        else:
            place += 2 + length
    return None


def rescaled(array: np.ndarray, dataset) -> np.ndarray:
    """Stored values to what they mean (Hounsfield units and the like); float32 where the file rescales."""
    from pydicom.pixels import apply_modality_lut

    if int(dataset.get("SamplesPerPixel", 1) or 1) > 1 or dataset.get("PhotometricInterpretation") not in MONOCHROME:
        return array
    for name in ("RescaleSlope", "RescaleIntercept"):
        if dataset.get(name) not in (None, "") and not np.isfinite(float(dataset.get(name))):
            raise ReadError(f"{name} is {dataset.get(name)}")
    if dataset.get("RescaleSlope") not in (None, "") and float(dataset.RescaleSlope) == 0:
        raise ReadError("RescaleSlope is 0: every value would be the same")
    array = apply_modality_lut(array, dataset)
    return array.astype(np.float32) if array.dtype == np.float64 else array


# Frames with places --------------------------------------------------------------------------------------------------


def _groups(dataset, frame: int = 0) -> list:
    """Functional groups of a frame, its own before the shared ones."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    return [*([own[frame]] if frame < len(own) else []), *([shared[0]] if len(shared) else [])]


def _item(dataset, frame: int, sequence: str):
    """First item of a functional group of a frame, or None."""
    for group in _groups(dataset, frame):
        if group.get(sequence):
            return group[sequence].value[0]
    return None


def planes_of_frames(dataset, where: str, header: dict) -> list[Plane]:
    """A plane per frame of an enhanced object or a dose grid; nothing where frames have no place.

    Raises:
        ReadError: some frames have a place and others not, colors, or fewer groups than frames.
    """
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if "GridFrameOffsetVector" in dataset and has_place(dataset):
        return _dose_planes(dataset, where, header, count)
    if "PerFrameFunctionalGroupsSequence" not in dataset and "SharedFunctionalGroupsSequence" not in dataset:
        return []
    positions = [_item(dataset, f, "PlanePositionSequence") for f in range(count)]
    orientations = [_item(dataset, f, "PlaneOrientationSequence") for f in range(count)]
    placed = [
        bool(p is not None and p.get("ImagePositionPatient") and o is not None and o.get("ImageOrientationPatient"))
        for p, o in zip(positions, orientations, strict=True)
    ]
    if not any(placed):
        return []
    if not all(placed):
        raise ReadError(f"{where}: frame {placed.index(False) + 1} of {count} has no place, others have one")
    groups = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if groups != count:
        raise ReadError(f"{where}: {groups} functional groups for {count} frames")
    array = decoded(dataset, where, header)
    if header["photometric"] not in MONOCHROME:
        raise ReadError(f"{where}: frames in color are no volume of grey values")
    array = array[None] if count == 1 else array
    planes = []
    for frame in range(count):
        name = f"{where} frame {frame + 1}"
        measures = _item(dataset, frame, "PixelMeasuresSequence")
        if measures is None or not measures.get("PixelSpacing"):
            raise ReadError(f"{name}: no PixelSpacing (0028,0030), the size of its pixels is unknown")
        planes.append(make_plane(
            name, orientations[frame].ImageOrientationPatient, positions[frame].ImagePositionPatient,
            measures.PixelSpacing, shape=array.shape[1:3], load=partial(_frame, array[frame], dataset, frame),
            tags=_frame_tags(dataset, frame), thickness_mm=number_of(measures, "SliceThickness"),
            stated_gap_mm=number_of(measures, "SpacingBetweenSlices"),
        ))  # fmt: skip
    return planes


def _frame(stored: np.ndarray, dataset, frame: int) -> np.ndarray:
    item = _item(dataset, frame, "PixelValueTransformationSequence")
    if item is None:
        return rescaled(stored, dataset)
    slope, intercept = (float(item.get(n, d)) for n, d in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise ReadError(f"frame {frame + 1}: RescaleSlope {slope} and RescaleIntercept {intercept} make no values")
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


_FRAME_TAGS = (
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("CTXRayDetailsSequence", "KVP"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
)


def _frame_tags(dataset, frame: int) -> dict[str, Any]:
    tags: dict[str, Any] = {"frame": frame}
    for sequence, name in _FRAME_TAGS:
        item = _item(dataset, frame, sequence)
        if item is not None and item.get(name) not in (None, ""):
            value = item.get(name)
            tags.setdefault(name, "\\".join(map(str, value)) if hasattr(value, "append") else value)
    if (diffusion := _item(dataset, frame, "MRDiffusionSequence")) is not None:
        if directions := diffusion.get("DiffusionGradientDirectionSequence"):
            tags["DiffusionGradientOrientation"] = str(directions[0].get("DiffusionGradientOrientation"))
    return tags


def _dose_planes(dataset, where: str, header: dict, count: int) -> list[Plane]:
    """A dose grid: frames lie along the normal at the offsets the file lists."""
    if not dataset.get("PixelSpacing"):
        raise ReadError(f"{where}: no PixelSpacing (0028,0030), the size of its pixels is unknown")
    offsets = [float(v) for v in np.atleast_1d(dataset.GridFrameOffsetVector)]
    if len(offsets) != count:
        raise ReadError(f"{where}: {len(offsets)} offsets for {count} frames")
    array = decoded(dataset, where, header)
    array = array[None] if count == 1 else array
    scale = float(dataset.get("DoseGridScaling", 1) or 1)
    header["steps"] = (*header["steps"], f"dose in {dataset.get('DoseUnits', 'units of the file')}")
    place = np.array([float(v) for v in dataset.ImagePositionPatient])
    first = make_plane(f"{where} frame 1", dataset.ImageOrientationPatient, place, dataset.PixelSpacing,
                       shape=array.shape[1:3], load=lambda: array[0])  # fmt: skip
    # Offsets count from the first frame, or are z coordinates where the first is not 0.
    return [
        make_plane(f"{where} frame {f + 1}", dataset.ImageOrientationPatient,
                   place + first.normal * (offset - offsets[0]), dataset.PixelSpacing, shape=array.shape[1:3],
                   load=partial(lambda values: (values * scale).astype(np.float32), array[f]),
                   tags={"frame": f}, thickness_mm=number_of(dataset, "SliceThickness"))
        for f, offset in enumerate(offsets)
    ]  # fmt: skip

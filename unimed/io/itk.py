"""NRRD and MetaImage: text headers and plain data, each with its data file beside it or inside.

The headers are read here and not by ITK, which gives uninitialized memory for cut compressed data, follows a header to
any file of the machine, and takes 1 mm where a file states no spacing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry, lps_to_ras
from unimed.io.limits import (
    ReadError,
    decompress,
    exactly,
    limits,
    refuse_large_file,
    refuse_placeholder,
    refuse_too_large,
)
from unimed.io.nifti import choose_phase

MAX_HEADER = 2**20
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
#: First axes of the patient spaces NRRD knows, as signs to RAS+.
_SPACES = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
_UNIT_TO_MM = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "meter": 1000.0,
               "um": 0.001, "µm": 0.001, "micron": 0.001, "microns": 0.001, "micrometer": 0.001}  # fmt: skip
_COLOR_KINDS = {"rgb-color": "RGB", "rgba-color": "RGBA", "3-color": "RGB", "4-color": "RGBA"}


@dataclass
class _Layout:
    """What a header says: `shape` and `dtype` of the data in Fortran order, where they lie, and the grid."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    offset: int
    encoding: str
    channels: int = 1
    color: str = ""
    #: Axis of the data that is no axis of space, or None.
    other_axis: int | None = None
    affine: np.ndarray | None = None
    extra: dict = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)


def read_nrrd(path: Path, phase=None, detached: bool = True) -> tuple[np.ndarray, Geometry]:
    """`.nrrd`, or `.nhdr` with its data file in the same folder or below."""
    return _read(path, _nrrd_layout(path, detached), "nrrd", phase)


def read_meta_image(path: Path, phase=None, detached: bool = True) -> tuple[np.ndarray, Geometry]:
    """`.mha`, or `.mhd` with its data file in the same folder or below."""
    return _read(path, _meta_layout(path, detached), "metaimage", phase)


def _read(path: Path, layout: _Layout, source_format: str, phase) -> tuple[np.ndarray, Geometry]:
    refuse_too_large(path, layout.shape, layout.dtype.itemsize)
    size = int(np.prod(layout.shape, dtype=np.int64)) * layout.dtype.itemsize
    refuse_large_file(layout.file)
    with open(layout.file, "rb") as stream:
        stream.seek(layout.offset)
        if layout.encoding == "raw":
            data = bytearray(stream.read(size + 1))
        elif layout.encoding == "text":
            data = _numbers(path, stream.read(min(64 * size, limits().decoded_bytes)), layout)
        else:
            data = decompress(stream, layout.encoding, layout.file, most=size)
    array = np.frombuffer(exactly(data, size, layout.file), layout.dtype).reshape(layout.shape, order="F")
    array = array.astype(layout.dtype.newbyteorder("="), copy=False)
    more = layout.other_axis is not None
    if more:
        array = np.moveaxis(array, layout.other_axis, -1)
        if array.shape[-1] == 1:
            array, more = array[..., 0], False
    if array.ndim - more == 2:
        array = np.expand_dims(array, 2)
    elif array.ndim - more != 3:
        raise ReadError(f"{path}: {array.ndim - more} axes of space {array.shape}; give one volume of it as a file")
    array, note = choose_phase(path, array, more and not layout.color, phase)
    header = {**layout.extra, "steps": (*layout.steps, *note)} | ({"color": layout.color} if layout.color else {})
    if layout.affine is None:
        return array, Geometry.pixels(source_format, header)
    geometry = Geometry(layout.affine, source_format)
    if geometry.is_sheared:
        angle = np.degrees(np.arccos(geometry.shear))
        header["steps"] += (f"sheared grid (axes {angle:.1f} degrees apart instead of 90)",)
    return array, Geometry(layout.affine, source_format, header=header)


def _numbers(path: Path, text: bytes, layout: _Layout) -> bytearray:
    try:
        return bytearray(np.array(text.split(), dtype=np.float64).astype(layout.dtype).tobytes())
    except ValueError as error:
        raise ReadError(f"{path}: its text data hold something that is no number ({error})") from error


def _data_file(path: Path, name: str, detached: bool) -> Path:
    """The data file of a header, which must lie in the folder of the header or below.

    Raises:
        ReadError: it lies elsewhere, is missing, or headers of uploads may name none (`detached` False).
    """
    if not detached:
        raise ReadError(f"{path}: its data lie in another file ({name}); give the data inside of one file")
    folder = path.parent.resolve()
    found = (folder / name).resolve()
    if Path(name).is_absolute() or ".." in Path(name).parts or not found.is_relative_to(folder):
        raise ReadError(f"{path}: its header points to {name}, which is outside of its folder; put it beside it")
    if not found.is_file():
        raise ReadError(f"{path}: its data file {name} is not beside it")
    return found


def _head(path: Path, ends: bytes) -> bytes:
    refuse_large_file(path)
    with open(path, "rb") as stream:
        head = stream.read(MAX_HEADER)
    refuse_placeholder(path, head)
    found = re.search(ends, head)
    if found is None:
        raise ReadError(f"{path}: damaged or not a MetaImage: its header has no end")
    return head[: found.end()]


def _floats(path: Path, key: str, text: str, count: int) -> np.ndarray:
    try:
        values = np.array([float(v) for v in text.replace(",", " ").split()])
    except ValueError:
        values = np.array([])
    if len(values) != count or not np.isfinite(values).all():
        raise ReadError(f"{path}: `{key}` must hold {count} finite numbers, found {text!r}")
    return values


def _integers(path: Path, key: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*\d+(\s+\d+)*\s*", text):
        raise ReadError(f"{path}: `{key}` must hold whole numbers, found {text!r}")
    return tuple(int(v) for v in text.split())


# MetaImage -----------------------------------------------------------------------------------------------------------


def _meta_layout(path: Path, detached: bool) -> _Layout:
    head = _head(path, rb"(?m)^[ \t]*ElementDataFile[ \t]*=[^\n]*\n?")
    fields = {}
    for line in head.decode("latin-1").splitlines():
        key, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals:
            raise ReadError(f"{path}: damaged or not a MetaImage: no `key = value` in {line[:60]!r}")
        if key.strip() in fields:
            raise ReadError(f"{path}: `{key.strip()}` stands twice in its header")
        fields[key.strip()] = value.strip()

    def true(key: str) -> bool:
        return fields.get(key, "False").lower() in ("true", "1")

    if fields.get("ObjectType", "Image") != "Image" or "NDims" not in fields or "DimSize" not in fields:
        raise ReadError(f"{path}: no MetaImage of an image; NDims and DimSize are needed")
    shape = _integers(path, "DimSize", fields["DimSize"])
    axes = _integers(path, "NDims", fields["NDims"])[0]
    if len(shape) != axes or not 2 <= axes <= 4:
        raise ReadError(f"{path}: NDims is {fields['NDims']}, DimSize {fields['DimSize']}; two to four axes are read")
    kind = fields.get("ElementType", "")
    if kind not in _META_TYPES:
        raise ReadError(f"{path}: voxels of the type {kind or '(none)'} are not read; save real numbers")
    if not true("BinaryData") and "BinaryData" in fields:
        encoding = "text"
    else:
        encoding = "zlib" if true("CompressedData") else "raw"
    big = true("BinaryDataByteOrderMSB") or true("ElementByteOrderMSB")
    name, channels = fields["ElementDataFile"], 1
    if "ElementNumberOfChannels" in fields:
        channels = _integers(path, "ElementNumberOfChannels", fields["ElementNumberOfChannels"])[0]
    if name.upper() == "LOCAL":
        file, offset = path, len(head)
    elif name.upper().startswith("LIST") or "%" in name:
        raise ReadError(f"{path}: data spread over several files are not read; save one file")
    else:
        file, offset = _data_file(path, name, detached), 0
    skip = fields.get("HeaderSize", "0")
    if skip not in ("0", "-1"):
        offset += _integers(path, "HeaderSize", skip)[0]
    dtype = np.dtype((">" if big else "<") + _META_TYPES[kind])
    layout = _Layout((channels, *shape) if channels > 1 else shape, dtype, file, offset, encoding)
    if skip == "-1":
        layout.offset = file.stat().st_size - int(np.prod(layout.shape, dtype=np.int64)) * dtype.itemsize
    if encoding == "zlib" and "CompressedDataSize" in fields:
        promised = _integers(path, "CompressedDataSize", fields["CompressedDataSize"])[0]
        if file.stat().st_size - layout.offset != promised:
            held = file.stat().st_size - layout.offset
            raise ReadError(f"{path}: the file holds {held} bytes of compressed data, its header promises {promised}")
    if channels > 1:
        layout.other_axis, layout.color = 0, {3: "RGB", 4: "RGBA"}.get(channels, "") if dtype.itemsize == 1 else ""
    elif axes == 4:
        layout.other_axis = 3
    _meta_grid(path, layout, fields, axes)
    return layout


def _first(fields: dict[str, str], *keys: str) -> tuple[str, str | None]:
    return next(((key, fields[key]) for key in keys if key in fields), (keys[0], None))


def _meta_grid(path: Path, layout: _Layout, fields: dict[str, str], axes: int) -> None:
    key, text = _first(fields, "ElementSpacing", "ElementSize")
    if text is None:
        layout.steps.append("no ElementSpacing in the header: not physical, the unit is the voxel")
        return
    spacing = _floats(path, key, text, axes)
    if (spacing <= 0).any():
        raise ReadError(f"{path}: `{key}` is {text}, but a spacing is positive; repair the header before use")
    direction = np.eye(axes)
    key, text = _first(fields, "TransformMatrix", "Orientation", "Rotation")
    if text is not None:
        direction = _floats(path, key, text, axes * axes).reshape(axes, axes).T
        lengths = np.linalg.norm(direction, axis=0)
        if np.abs(lengths - 1).max() > 1e-3:
            raise ReadError(f"{path}: the rows of `{key}` have the lengths {lengths.round(4).tolist()} instead of 1")
    key, text = _first(fields, "Offset", "Position", "Origin")
    origin = np.zeros(axes) if text is None else _floats(path, key, text, axes)
    layout.affine = lps_to_ras(_affine(direction * spacing, origin))


def _affine(linear: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """4x4 of the first three axes; a missing third one points along the normal, 1 mm long."""
    affine, count = np.eye(4), min(3, len(origin))
    affine[:count, :count] = linear[:3, :3]
    affine[:count, 3] = origin[:3]
    return affine


# NRRD ----------------------------------------------------------------------------------------------------------------


def _nrrd_layout(path: Path, detached: bool) -> _Layout:
    with open(path, "rb") as stream:
        start = stream.read(MAX_HEADER)
    refuse_placeholder(path, start)
    if not re.match(rb"NRRD000[1-5]\r?\n", start):
        raise ReadError(f"{path}: damaged or not an NRRD file: it begins with {start[:8]!r}")
    end = re.search(rb"\n\r?\n", start)
    # A header alone (.nhdr) may end with the file.
    head = start[: end.end()] if end else start
    fields = {}
    for line in head.decode("utf-8", errors="replace").splitlines()[1:]:
        if not line.strip() or line.startswith("#") or ":=" in line:
            continue  # comments and free key/value pairs
        key, colon, value = line.partition(":")
        if not colon:
            raise ReadError(f"{path}: damaged or not an NRRD file: no `field: value` in {line[:60]!r}")
        key = key.strip().lower().replace("datafile", "data file").replace("lineskip", "line skip")
        key = key.replace("byteskip", "byte skip")
        if key in fields:
            raise ReadError(f"{path}: `{key}` stands twice in its header")
        fields[key] = value.strip()
    for key in ("type", "dimension", "sizes", "encoding"):
        if key not in fields:
            raise ReadError(f"{path}: its header has no `{key}`")
    shape = _integers(path, "sizes", fields["sizes"])
    axes = _integers(path, "dimension", fields["dimension"])[0]
    if len(shape) != axes or not 2 <= axes <= 4:
        raise ReadError(f"{path}: dimension {axes}, sizes {fields['sizes']}; two to four axes are read")
    dtype = next((np.dtype(t) for t, names in _NRRD_TYPES.items() if fields["type"].lower() in names), None)
    if dtype is None:
        raise ReadError(f"{path}: voxels of the type {fields['type']} are not read; save real numbers")
    encodings = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "ascii": "text",
                 "text": "text", "txt": "text"}  # fmt: skip
    encoding = encodings.get(fields["encoding"].lower())
    if encoding is None:
        raise ReadError(f"{path}: the encoding {fields['encoding']} is not read; save it as raw or gzip")
    if dtype.itemsize > 1 and encoding != "text":
        order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
        if order is None:
            raise ReadError(f"{path}: its header does not say whether its numbers are little or big endian")
        dtype = dtype.newbyteorder(order)
    layout = _Layout(shape, dtype, path, len(head), encoding)
    if "data file" in fields:
        name = fields["data file"]
        if name.upper().startswith("LIST") or "%" in name:
            raise ReadError(f"{path}: data spread over several files are not read; save one file")
        layout.file, layout.offset = _data_file(path, name, detached), 0
    elif end is None:
        raise ReadError(f"{path}: the file is short: it ends within its header")
    _skip(path, layout, fields)
    _nrrd_axes(path, layout, fields, axes)
    return layout


def _skip(path: Path, layout: _Layout, fields: dict[str, str]) -> None:
    lines, skip = fields.get("line skip", "0"), fields.get("byte skip", "0")
    if skip == "-1" and layout.encoding == "raw":
        layout.offset = layout.file.stat().st_size - int(np.prod(layout.shape, dtype=np.int64)) * layout.dtype.itemsize
        if layout.offset < 0:
            raise ReadError(f"{layout.file}: the file is short: {layout.file.stat().st_size} bytes")
    elif lines != "0" or skip != "0":
        if layout.encoding not in ("raw", "text"):
            raise ReadError(f"{path}: `line skip` or `byte skip` before compressed data is not read")
        with open(layout.file, "rb") as stream:
            stream.seek(layout.offset)
            for _ in range(_integers(path, "line skip", lines)[0]):
                stream.readline(MAX_HEADER)
            layout.offset = stream.tell() + _integers(path, "byte skip", skip)[0]


def _vectors(path: Path, text: str, count: int) -> list[np.ndarray | None]:
    parts = re.findall(r"none|\([^)]*\)", text)
    if len(parts) != count:
        raise ReadError(f"{path}: `space directions` must hold {count} vectors or `none`, found {text!r}")
    found = [None if part == "none" else part.strip("()") for part in parts]
    # Some writers say "none" by three nan.
    found = [None if part and re.fullmatch(r"(?i)\s*nan\s*(,\s*nan\s*)*", part) else part for part in found]
    return [None if part is None else _floats(path, "space directions", part, len(part.split(","))) for part in found]


def _nrrd_axes(path: Path, layout: _Layout, fields: dict[str, str], axes: int) -> None:
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * axes
    if len(kinds) != axes:
        raise ReadError(f"{path}: `kinds` must name {axes} axes, found {fields['kinds']!r}")
    spatial = [axis for axis, kind in enumerate(kinds) if kind in ("domain", "space", "???", "none")]
    vectors = _vectors(path, fields["space directions"], axes) if "space directions" in fields else None
    if vectors is not None:
        spatial = [axis for axis in range(axes) if vectors[axis] is not None] or spatial
    if len(spatial) > 3:
        spatial = spatial[:3]
    if len(spatial) < axes - 1:
        raise ReadError(f"{path}: {axes} axes of the kinds {' '.join(kinds)}; one volume with at most one more is read")
    if len(spatial) < axes:
        layout.other_axis = next(axis for axis in range(axes) if axis not in spatial)
        count = layout.shape[layout.other_axis]
        layout.color = _COLOR_KINDS.get(kinds[layout.other_axis], "")
        if layout.color and count != len(layout.color):
            raise ReadError(f"{path}: an axis of {count} is no {kinds[layout.other_axis]}")
    _nrrd_grid(path, layout, fields, spatial, vectors)


def _nrrd_grid(path: Path, layout: _Layout, fields: dict[str, str], spatial: list[int], vectors) -> None:
    if vectors is not None and re.search(r"\d", fields.get("spacings", "")):
        raise ReadError(f"{path}: its header gives both `spacings` and `space directions`; remove one of them")
    space = fields.get("space", "").lower()
    if vectors is None or space not in _SPACES:
        missing = "no `space`" if not space else f"space {space!r}, which is no patient's"
        missing = missing if vectors is not None or not space else "no `space directions`"
        layout.steps.append(f"{missing} in the header: not physical, the unit is the voxel")
        if "spacings" in fields:
            layout.extra["spacings"] = fields["spacings"]
        return
    columns = [vectors[axis] for axis in spatial]
    if any(len(column) != 3 for column in columns) or not all(column.any() for column in columns):
        raise ReadError(f"{path}: `space directions` must be vectors of three numbers, not zero")
    if len(columns) == 2:
        normal = np.cross(columns[0], columns[1])
        columns.append(normal / np.linalg.norm(normal))
    origin = np.zeros(3)
    if "space origin" in fields:
        origin = _floats(path, "space origin", fields["space origin"].strip("()"), 3)
    else:
        layout.steps.append("no `space origin` in the header: 0, 0, 0 is taken")
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))} or {"mm"}
    if len(units) > 1 or next(iter(units)) not in _UNIT_TO_MM:
        raise ReadError(f"{path}: `space units` {fields['space units']} are not read; use mm")
    scale = _UNIT_TO_MM[next(iter(units))]
    if scale != 1.0:
        layout.steps.append(f"{next(iter(units))} converted to millimetres")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.column_stack(columns) * scale, origin * scale
    layout.affine = np.diag((*_SPACES[space], 1)) @ affine

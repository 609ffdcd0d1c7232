"""NIfTI-1 and -2, their two-file form, Analyze, and FreeSurfer's MGH: array and affine in RAS+ millimetres."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from unimed.geometry import Geometry, grid_distance
from unimed.io.limits import ReadError, begin_of, exactly, read_whole, refuse_large_file, refuse_too_large

#: Factors to millimetres of the codes in the three lowest bits of `xyzt_units`; 0 is unknown and taken as mm.
UNIT_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
UNIT_NAMES = {0: "unknown", 1: "metres", 2: "millimetres", 3: "micrometres"}
#: A qform and an sform that lie closer than this everywhere are the same grid, in voxels.
SAME_FORM_VOX = 0.05
#: Most bytes behind the voxels of an MGH file: scan parameters, command lines, a table of colors.
MGH_TAIL = 16 * 2**20
COLORS = {("R", "G", "B"): "RGB", ("R", "G", "B", "A"): "RGBA"}


def read_nifti(path: Path, phase: int | str | None = None) -> tuple[np.ndarray, Geometry]:
    """`.nii`, `.nii.gz`, or one of a pair `.hdr` and `.img` (also Analyze 7.5, whose directions are not known)."""
    import nibabel
    from nibabel.volumeutils import apply_read_scaling

    header_path, data_path = _pair(path)
    header, single = _header(header_path, begin_of(header_path, 1024), nibabel)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    refuse_too_large(path, shape, dtype.itemsize)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    offset = int(header.get_data_offset())
    if not single and data_path == header_path:
        raise ReadError(f"{path}: its header says that the data lie in a second file; give the pair as .hdr and .img")
    if offset < 0 or (single and offset < header.sizeof_hdr):
        raise ReadError(f"{path}: its data would begin at byte {offset}, inside the header")
    # What a stream holds beyond that is refused while it is read, however much it is.
    data = _stored(data_path, offset + size)
    exactly(memoryview(data)[offset:], size, data_path)
    array = np.ndarray(shape, dtype, buffer=data, offset=offset, order="F")
    color = ""
    if dtype.fields is not None:
        color = COLORS.get(tuple(dtype.names), "")
        if not color:
            raise ReadError(f"{path}: voxels of the type {dtype} are not read; save real numbers")
        array = np.stack([array[name] for name in dtype.names], axis=-1)
    elif hasattr(header, "get_slope_inter"):
        slope, intercept = header.get_slope_inter()
        if slope is not None:
            array = apply_read_scaling(array, slope, intercept)
    array, geometry = _placed(path, array, header, shape, single)
    return _one_phase(path, array, geometry, len(shape), color, phase)


def _pair(path: Path) -> tuple[Path, Path]:
    """Header and data file, both in the folder of `path`."""
    name = path.name.lower()
    if not name.endswith((".hdr", ".img")):
        return path, path
    found: dict[str, Path] = {}
    for suffix in (".hdr", ".img"):
        candidates = [path.with_suffix(end) for end in (suffix, suffix.upper())]
        there = path if name.endswith(suffix) else next((p for p in candidates if p.is_file()), None)
        if there is None:
            raise ReadError(f"{path}: its second file {candidates[0].name} is not beside it")
        found[suffix] = there
    return found[".hdr"], found[".img"]


def _stored(path: Path, most: int):
    """The bytes of a file: gunzipped in memory, at most `most`, or mapped where they lie as they are."""
    refuse_large_file(path)
    with open(path, "rb") as stream:
        if stream.read(2) == b"\x1f\x8b" or path.stat().st_size < 2**16:
            return read_whole(path, most)
    return np.memmap(path, dtype=np.uint8, mode="c")


def _header(path: Path, data: bytes, nibabel):
    """The header object and whether header and data lie in one file."""
    size = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    if 540 in size:
        kind = nibabel.Nifti2Header if data[4:6] == b"n+" else nibabel.nifti2.Nifti2PairHeader
    elif 348 in size:
        magic = data[344:348]
        kind = {b"n+1\0": nibabel.Nifti1Header, b"ni1\0": nibabel.nifti1.Nifti1PairHeader}.get(magic)
        if kind is None:
            if path.name.lower().endswith((".nii", ".nii.gz")):
                raise ReadError(f"{path}: damaged or not a NIfTI file: its mark is {magic!r}")
            kind = nibabel.spm99analyze.Spm99AnalyzeHeader
    else:
        raise ReadError(f"{path}: damaged or not a NIfTI file: it does not begin with the size of a header")
    need = 540 if 540 in size else 348
    if len(data) < need:
        raise ReadError(f"{path}: the file is short: {len(data)} bytes, the header alone takes {need}")
    # Unchecked, because nibabel repairs what it finds: here a wrong header is an error.
    header = kind.from_fileobj(io.BytesIO(data[:need] + b"\0" * 4), check=False)
    extents = header["dim"][1 : 1 + int(header["dim"][0])]
    if not 1 <= int(header["dim"][0]) <= 7 or (extents < 1).any():
        raise ReadError(f"{path}: its header gives the extents {header['dim'].tolist()}, which make no array")
    return header, kind in (nibabel.Nifti1Header, nibabel.Nifti2Header)


def _placed(path: Path, array: np.ndarray, header, shape, single: bool) -> tuple[np.ndarray, Geometry]:
    steps: list[str] = []
    extra: dict[str, Any] = {"zooms": tuple(float(v) for v in header.get_zooms())}
    if not hasattr(header, "get_qform"):
        affine = np.diag([*(abs(float(v)) or 1.0 for v in (*header.get_zooms(), 1, 1, 1)[:3]), 1.0])
        steps.append("Analyze carries no directions: axes are taken to run to the right, front and head")
        return array, Geometry(affine, "nifti", header={**extra, "orientation_assumed": True, "steps": tuple(steps)})
    code = int(header["xyzt_units"]) & 7
    if code not in UNIT_TO_MM:
        raise ReadError(f"{path}: unknown unit code {code} in xyzt_units; repair the header before use")
    to_mm = np.diag([UNIT_TO_MM[code]] * 3 + [1.0])
    if UNIT_TO_MM[code] != 1.0:
        steps.append(f"{UNIT_NAMES[code]} converted to millimetres")
    sform, s_code = header.get_sform(coded=True)
    try:
        qform, q_code = header.get_qform(coded=True)
    except Exception as error:  # nibabel and numpy each say it differently
        if not s_code:
            raise ReadError(f"{path}: its qform is no rotation ({error}); repair the header before use") from error
        qform, q_code = None, 0
    if s_code:
        affine, used = sform, f"sform (code {s_code})"
    elif q_code:
        affine, used = qform, f"qform (code {q_code})"
    else:
        affine, used = header.get_base_affine(), ""
        extra["orientation_assumed"] = True
        steps.append("neither qform nor sform is set: spacing from pixdim, directions and origin are assumed")
    geometry = Geometry(to_mm @ affine, "nifti")
    # As the file has them, in mm: results are written with the same two, so that they lie on their source for all.
    forms: dict[str, Any] = {"affine": geometry.affine, "qform_code": int(q_code or 0), "sform_code": int(s_code or 0)}
    forms["sform"] = to_mm @ sform if s_code else None
    forms["qform"] = to_mm @ qform if q_code else None
    forms["pixdim"] = tuple(float(v) * UNIT_TO_MM[code] for v in header["pixdim"][1:4])
    forms["qfac"] = float(header["pixdim"][0])
    if s_code and q_code:
        away = grid_distance(geometry, Geometry(forms["qform"]), (*shape, 1, 1)[:3])
        if away > SAME_FORM_VOX:
            steps.append(
                f"{used} used; the qform (code {q_code}) places voxels up to {away:.2f} voxels elsewhere: "
                "programs that read the qform first show another place"
            )
            forms["conflict"] = True
    used_mm, pixdim_mm = np.array(geometry.spacing), np.abs(forms["pixdim"])
    if used and not forms.get("conflict") and (np.abs(pixdim_mm - used_mm) > 0.01 * used_mm).any():
        steps.append(
            f"{used} used, spacing {used_mm.round(4).tolist()} mm; pixdim says {pixdim_mm.round(4).tolist()} mm: "
            "programs that read it first (ITK) show another spacing"
        )
        forms["conflict"] = True
    if geometry.is_sheared:
        angle = np.degrees(np.arccos(geometry.shear))
        steps.append(
            f"sheared grid (axes {angle:.1f} degrees apart instead of 90); ITK does not open it or puts it elsewhere"
        )
    extra |= {"nifti": forms, "form_used": used, "steps": tuple(steps)}
    return array, Geometry(geometry.affine, "nifti", header=extra)


def _one_phase(path, array, geometry, axes: int, color: str, phase) -> tuple[np.ndarray, Geometry]:
    """Three axes (and a last one of 3 or 4 for colors) out of what NIfTI calls up to seven."""
    channels = array.shape[-1:] if color else ()
    rest = [extent for extent in array.shape[3:axes] if extent > 1]
    array = array.reshape((*array.shape[: min(axes, 3)], 1, 1)[:3] + (*rest, *channels))
    if len(rest) > 1 and phase != "all":
        raise ReadError(f"{path}: data of {axes} axes {array.shape}; give one volume of it as a file")
    array, note = choose_phase(path, array, bool(rest), phase)
    header = dict(geometry.header) | {"steps": (*geometry.steps, *note)} | ({"color": color} if color else {})
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return array, Geometry(geometry.affine, "nifti", header=header)


def choose_phase(path, array: np.ndarray, several: bool, phase) -> tuple[np.ndarray, tuple[str, ...]]:
    """One entry of the fourth axis, or all with phase="all"; and what was done, in words.

    Raises:
        ReadError: `several` and none chosen, or a number that is not there.
    """
    if not several:
        if phase not in (None, 0, "0", "all"):
            raise ReadError(f"{path}: there is only one phase, number 0; phase {phase!r} is not there")
        return array, ()
    if phase == "all":
        return array, ()
    count = array.shape[3]
    if phase is None:
        raise ReadError(
            f"{path}: 4D data {array.shape}, {count} phases and not one volume; "
            f'choose one with phase=0 to phase={count - 1} (--phase), or take phase="all"'
        )
    if not str(phase).isdigit() or int(phase) >= count:
        raise ReadError(f"{path}: phase {phase!r} is not there; there are 0 to {count - 1}")
    return array[:, :, :, int(phase)], (f"phase {phase} of {count} taken",)


def read_mgh(path: Path, phase: int | str | None = None) -> tuple[np.ndarray, Geometry]:
    """FreeSurfer's `.mgh` and `.mgz`."""
    import nibabel

    header = nibabel.freesurfer.mghformat.MGHHeader.from_fileobj(io.BytesIO(begin_of(path, 284)))
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    refuse_too_large(path, shape, dtype.itemsize)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data = read_whole(path, 284 + size + MGH_TAIL)
    if len(data) < 284 + size:
        raise ReadError(f"{path}: the file is short: {len(data)} bytes, its header promises more")
    # What follows the voxels are scan parameters and tags: the format has no end to check.
    array = np.ndarray(shape, dtype, buffer=data, offset=284, order="F")
    steps = () if int(header["goodRASFlag"]) else ("no directions in the file: FreeSurfer's coronal default",)
    extra = {"steps": steps} | ({} if steps == () else {"orientation_assumed": True})
    shape = (*(extent for extent in (*shape, 1, 1)[:3]), *(extent for extent in shape[3:] if extent > 1))
    array, note = choose_phase(path, array.reshape(shape), len(shape) > 3, phase)
    return array, Geometry(header.get_affine(), "mgh", header=extra | {"steps": (*steps, *note)})

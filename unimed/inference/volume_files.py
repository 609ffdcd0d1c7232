"""Volumes from files and results to files, in the geometry of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry
from unimed.io.challenge import Prompts, read_prompts
from unimed.io.read import ReadError, read

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".npz", ".dcm", ".dicom")


def find_volumes(folder: str | Path) -> list[Path]:
    """Files with a volume suffix, and folders that hold DICOM slices, below `folder`, in order.

    A folder that itself holds DICOM slices is one volume. NPZ files of truths (`gts`) and results (`segs`)
    without `imgs` are left out; one with none of the three is kept, so that reading it says what is missing.

    Raises:
        FileNotFoundError: no such folder, or no volume in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = []
    for place in sorted([folder, *(p for p in folder.rglob("*") if p.is_dir())]):
        files = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
        dicoms = [p for p in files if p.suffix.lower() in (".dcm", ".dicom", ".ima", "")]
        if len(dicoms) > 1 and _is_dicom(dicoms[0]):
            found.append(place)
        found += [
            p
            for p in files
            if p.name.lower().endswith(SUFFIXES) and not (p in dicoms and len(dicoms) > 1) and _is_image(p)
        ]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no volume in it; known are {', '.join(SUFFIXES)} and folders of DICOM slices"
        )
    return found


def read_volume(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """As `unimed.io.read.read`; anything that has not three axes is refused.

    Raises:
        ReadError: a picture, or 4D data with more than one phase; and what `read` raises.
    """
    array, geometry = read(path)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or (array.shape[-1] == 3 and geometry.source_format == "picture"):
        raise ReadError(f"{path}: {array.ndim}D data {array.shape} is no volume; give one phase or channel as a file")
    return array, geometry


def prompts_for(path: str | Path, texts: Sequence[str] | None = None, table: str | Path | None = None) -> Prompts:
    """What to ask of a file: the given texts, else a JSON table, else the prompts inside an NPZ.

    Raises:
        ReadError: none of them there.
    """
    if texts:
        return Prompts({number: (text,) for number, text in enumerate(texts, 1)})
    if table:
        return read_prompts(table)
    if str(path).lower().endswith(".npz"):
        return read_prompts(path)
    raise ReadError(f"{path}: say what to look for with --prompts or --prompt-file; this format holds no prompts")


def _is_image(path: Path) -> bool:
    if not path.name.lower().endswith(".npz"):
        return True
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            return "imgs.npy" in names or not names & {"gts.npy", "segs.npy"}
    except zipfile.BadZipFile:
        return True  # reading it will say what is wrong


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(128)
        return stream.read(4) == b"DICM"

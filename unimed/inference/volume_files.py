"""Volumes from files and results to files, in the geometry of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimed.geometry import Geometry
from unimed.io.challenge import Prompts, read_prompts
from unimed.io.dicom_series import kind_of_dicom
from unimed.io.read import VOLUME_SUFFIXES, ReadError, may_be_dicom, read

#: What `find_volumes` looks for by name. The `.img` and `.raw` files of pairs are read through their headers.
SUFFIXES = tuple(suffix for suffix in VOLUME_SUFFIXES if suffix != ".img")


def find_volumes(folder: str | Path, pictures: bool = False) -> list[Path]:
    """Files with a volume suffix, and folders that hold DICOM slices, below `folder`, in order.

    A folder that itself holds DICOM slices, whatever their names, is one volume; where it holds several series, reading
    it lists them. DICOM files of many frames (cines, enhanced objects) are volumes of their own; so is a lone file.
    DICOM results (segmentations) are left out, as are NPZ files of truths (`gts`) and results (`segs`) without `imgs`;
    an NPZ with none of the three is kept, so that reading it says what is missing.

    Args:
        pictures: for those who ask about pictures as well: where no DICOM file of a folder has a place in the patient
            (X-rays, photographs), each of them is found instead of the folder.

    Raises:
        FileNotFoundError: no such folder, or no volume in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = []
    for place in sorted([folder, *(p for p in folder.rglob("*") if p.is_dir())]):
        files = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
        kinds = {path: kind_of_dicom(path) for path in files if may_be_dicom(path)}
        slices = [path for path, kind in kinds.items() if kind in ("slice", "picture")]
        if all(kinds[path] == "picture" for path in slices) and pictures:
            found += slices
            slices = []
        if len(slices) > 1:
            found.append(place)
        for path in files:
            if path in kinds:
                if kinds[path] == "frames" or slices == [path]:
                    found.append(path)
            elif path.name.lower().endswith(SUFFIXES) and _is_image(path):
                found.append(path)
    if not found:
        raise FileNotFoundError(
            f"{folder}: no volume in it; known are {', '.join(SUFFIXES)} and folders of DICOM slices"
        )
    return found


def read_volume(
    path: str | Path, *, series: str | int | None = None, phase: str | int | None = None, irregular: str = "refuse"
) -> tuple[np.ndarray, Geometry]:
    """As `unimed.io.read.read`; anything that has not three axes is refused.

    A color volume whose channels are equal is taken as grey, which `geometry.steps` says.

    Raises:
        ReadError: a picture, colors, a cine, or 4D data with more than one phase; and what `read` raises.
    """
    array, geometry = read(path, series=series, phase=phase, irregular=irregular)
    if geometry.header.get("cine"):
        raise ReadError(f"{path}: a cine of {len(array)} frames, not a volume; its frames have no place in space")
    if geometry.header.get("color") and array.ndim == 4:
        if not (array[..., :3] == array[..., :1]).all():
            raise ReadError(f"{path}: a color volume {array.shape}; give one channel as a file")
        header = dict(geometry.header) | {"steps": (*geometry.steps, "equal color channels taken as grey")}
        header.pop("color")
        array, geometry = array[..., 0], replace(geometry, header=header)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or (array.shape[-1] == 3 and geometry.source_format in ("picture", "dicom") and not
                           geometry.is_physical):  # fmt: skip
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

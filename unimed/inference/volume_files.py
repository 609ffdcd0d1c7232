"""Volumes from files and results to files, in the geometry of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimed.io.challenge import Prompts, read_prompts
from unimed.io.dicom_series import kind_of_dicom
from unimed.io.read import VOLUME_SUFFIXES, ReadError, may_be_dicom
from unimed.io.volumes import read_volume

#: What `find_volumes` looks for by name. The `.img` and `.raw` files of pairs are read through their headers.
SUFFIXES = tuple(suffix for suffix in VOLUME_SUFFIXES if suffix != ".img")


def find_volumes(folder: str | Path, single_images: bool = False) -> list[Path]:
    """Files with a volume suffix, and folders that hold DICOM slices, below `folder`, in order.

    A folder that itself holds DICOM slices, whatever their names, is one volume; where it holds several series, reading
    it lists them. DICOM files of many frames (cines, enhanced objects) are volumes of their own; so is a lone file.
    DICOM results (segmentations) are left out, as are NPZ files of truths (`gts`) and results (`segs`) without `imgs`;
    an NPZ with none of the three is kept, so that reading it says what is missing.

    Args:
        single_images: for those who ask about images too: where no DICOM file of a folder has a place in the patient
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
        slices = [path for path, kind in kinds.items() if kind in ("slice", "image")]
        if single_images and all(kinds[path] == "image" for path in slices):
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


__all__ = ["SUFFIXES", "find_volumes", "prompts_for", "read_volume"]

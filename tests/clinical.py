"""Synthetic series as scanners send them, and the checkers that hospitals trust, for tests of clinical files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_volumes import enhanced, grid, oblique_grids, save, slices, upright_grids

from unimed.geometry import lps_to_ras
from unimed.io.read import read

SHAPE = (9, 7, 6)
MR = "1.2.840.10008.5.1.4.1.1.4"


def tool(name):
    """Path of a checker, beside the running Python or on the path; the test is skipped where it is not there."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def dicom_errors(path):
    """Lines of dciodvfy that begin with Error."""
    done = subprocess.run([tool("dciodvfy"), str(path)], capture_output=True, text=True, errors="replace", check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def dcmqi_segments(path, folder, fractional=False):
    """[(attributes of the segment, bool (columns, rows, slices), LPS affine)] as dcmqi reads a SEG.

    Of a fractional one it writes the stored numbers, 255 for 1; half of that and more counts as inside.
    """
    import SimpleITK

    folder.mkdir(exist_ok=True)
    command = [tool("segimage2itkimage"), "--inputDICOM", str(path), "--outputDirectory", str(folder), "-t", "nrrd"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    found = []
    for number, attributes in enumerate(meta["segmentAttributes"], 1):
        image = SimpleITK.ReadImage(str(folder / f"{number}.nrrd"))
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
        found += [(a, array > 127 if fractional else array == a.get("labelID", 1), affine) for a in attributes]
    return found


def voxels_different(mask, geometry, found, affine_lps):
    """How many voxels of a mask differ from those found in another grid (LPS affine), place by place in the patient."""
    indices = np.argwhere(found)
    places = lps_to_ras(affine_lps) @ np.column_stack((indices, np.ones(len(indices)))).T
    back = np.linalg.solve(geometry.affine, places)[:3].T
    assert np.abs(back - back.round()).max(initial=0) < 0.02, "the grids do not lie on each other"
    there = {tuple(place) for place in back.round().astype(int).tolist()}
    return len(there ^ {tuple(place) for place in np.argwhere(mask).tolist()})


def source_cases():
    """(name, geometry, kind) of series: upright, oblique, one slice, tilted, MR, enhanced."""
    upright = upright_grids(SHAPE)
    cases = [(f"ct-{g.orientation}", g, "ct") for g in upright[::2]]
    cases += [(f"mr-oblique-{k}", g, "mr") for k, g in enumerate(oblique_grids(8))]
    cases += [(f"ct-oblique-{k}", g, "ct") for k, g in enumerate(oblique_grids(4, seed=3))]
    cases += [(f"enhanced-{k}", g, "enhanced") for k, g in enumerate(oblique_grids(4, seed=5))]
    cases += [(f"enhanced-mr-{k}", g, "enhanced-mr") for k, g in enumerate(oblique_grids(2, seed=6))]
    cases += [(f"one-slice-{k}", g, "one") for k, g in enumerate(oblique_grids(3, seed=7))]
    return cases


def write_source(folder, geometry, kind="ct", shape=SHAPE, seed=0, **attributes):
    """Files of a series; returns what `read` gives for them."""
    values = np.random.default_rng(seed).integers(-200, 400, shape).astype(np.int16)
    common = {"RescaleSlope": "1", "RescaleIntercept": "0", "PatientName": "Doe^Jane", "PatientID": "P-77",
              "StudyDate": "20250102", "StudyTime": "101112", "AccessionNumber": "ACC9", "PatientBirthDate": "19500203",
              "FrameOfReferenceUID": "1.2.826.0.1.777.3",
              "PatientSex": "F", "StudyID": "S9", "PositionReferenceIndicator": ""} | attributes  # fmt: skip
    if kind.startswith("enhanced"):
        order = np.random.default_rng(seed + 1).permutation(shape[2])
        made = enhanced(values, geometry, order, "MR" if kind.endswith("mr") else "CT")
        for name, value in common.items():
            setattr(made, name, value)
        (path,) = save(folder, [made], ["e.dcm"])
        return read(path)
    if kind == "one":
        values = values[..., :1]
    if kind == "mr":
        common |= {"Modality": "MR", "SOPClassUID": MR}
    made = slices(values, geometry, **common)
    if kind == "mr":
        for one in made:
            one.file_meta.MediaStorageSOPClassUID = MR
    paths = save(folder, made)
    return read(folder if len(paths) > 1 else paths[0])


def ct_series(folder, shape=SHAPE, **attributes):
    """A small upright CT."""
    return write_source(folder, grid((0.8, 0.9, 2.5), origin=(-50, -40, 100)), "ct", shape, **attributes)


def blobs(shape, count=3, seed=0):
    """Overlapping bool masks, none empty."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        mask = rng.random(shape) > 0.6
        mask[tuple(n // 2 for n in shape)] = True
        made.append(mask)
    return made


def identifying(header):
    """Everything of a header that tells of the patient or the study, as text."""
    names = ("PatientName", "PatientID", "StudyDate", "AccessionNumber", "PatientBirthDate", "StudyTime",
             "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")  # fmt: skip
    return [str(header.get(name)) for name in names if header.get(name)]


def found_in(content, texts):
    """Those of `texts` that stand in the bytes of a file."""
    return [text for text in texts if text.encode() in content]


def unpacked(runs):
    """Label Studio's brush runs as values, by the description of its format."""
    bits, place = "".join(f"{byte:08b}" for byte in runs), 0

    def take(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out = []
    while len(out) < total:
        equal = take(1)
        length = take(sizes[take(2)]) + 1
        out += [take(word)] * length if equal else [take(word) for _ in range(length)]
    return np.array(out, np.uint8)

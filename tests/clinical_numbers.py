"""Every kind of clinical file over every kind of series, checked by dciodvfy and dcmqi; prints a table.

python tests/clinical_numbers.py
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from clinical import blobs, dcmqi_segments, dicom_errors, source_cases, tool, voxels_different, write_source  # noqa: E402

from unimed.io.dicom_result import read_report, read_segmentation  # noqa: E402
from unimed.io.result import Prediction  # noqa: E402
from unimed.io.rtstruct import read_rtstruct  # noqa: E402
from unimed.structures import Region  # noqa: E402

PHRASES = ("left kidney", "cyst of the right kidney", "Läsion 肝臓")
TEXT = "The left kidney is large. A cyst of the right kidney is seen. Läsion 肝臓."


def one(folder, grid, kind, table):
    array, geometry = write_source(folder / "s", grid, kind)
    masks = blobs(array.shape)
    regions = tuple(Region(p, m, presence=0.75) for p, m in zip(PHRASES, masks, strict=True))
    result = Prediction(TEXT, (*regions, Region("gallstone", presence=0.02)), geometry, model_reference="m")
    maps = [m.astype(np.float32) for m in masks] + [None]
    parted = Prediction("", tuple(Region(p, np.isclose(array % 3, n)) for n, p in enumerate(PHRASES)), geometry)
    empty = Prediction("", (Region("gallstone", presence=0.1),), geometry)
    only = Prediction(TEXT, regions, geometry)
    made = {
        "SEG BINARY": (result, "dicom-seg", {}),
        "SEG FRACTIONAL": (only, "dicom-seg", {"segmentation_type": "FRACTIONAL", "probabilities": maps[:3]}),
        "SEG LABELMAP": (parted, "dicom-seg", {"segmentation_type": "LABELMAP"}),
        "SEG, nothing found": (empty, "dicom-seg", {}),
        "SEG deidentified": (result, "dicom-seg", {"deidentified": True}),
        "SR TID 1500": (result, "dicom-sr", {}),
        "RTSTRUCT": (result, "rtstruct", {}),
        "parametric map": (result, "parametric-map", {"probabilities": maps}),
        "secondary capture": (result, "secondary-capture", {}),
    }
    for name, (prediction, form, options) in made.items():
        place = folder / name.replace(" ", "_").replace(",", "")
        paths = prediction.save(place, "x", (form,), **options)
        row = table.setdefault(name, Counter())
        row["series"] += 1
        row["objects"] += len(paths)
        row["dciodvfy errors"] += sum(len(dicom_errors(path)) for path in paths)
        if form == "dicom-seg" and "nothing" not in name:
            expected = [region.mask for region in prediction.regions if region.mask is not None]
            found = dcmqi_segments(paths[0], folder / "q", "FRACTIONAL" in name)
            row["voxels different in dcmqi"] += sum(
                voxels_different(mask, geometry, seen, affine)
                for mask, (_, seen, affine) in zip(expected, found, strict=True)
            )
            row["voxels different read back"] += sum(
                int((mask != region.mask).sum())
                for mask, region in zip(expected, read_segmentation(paths[0], geometry)[0], strict=True)
            )
        if form == "dicom-sr":
            command = [tool("tid1500reader"), "--inputDICOM", paths[0], "--outputMetadata", folder / "m.json"]
            subprocess.run(command, check=True, capture_output=True)
            groups = json.loads((folder / "m.json").read_text(encoding="utf-8"))["Measurements"]
            row["groups missing in dcmqi"] += len(PHRASES) - sum("ReferencedSegment" in g for g in groups)
            back = read_report(paths[0], geometry)
            same = back.text == TEXT and all(
                a.phrase == b.phrase and abs(a.presence - b.presence) < 1e-9 and np.array_equal(a.mask, b.mask)
                for a, b in zip(back.regions[:3], result.regions[:3], strict=True)
            )
            row["reports read back unequal"] += not (same and back.regions[3].mask is None)
        if form == "rtstruct":
            back = read_rtstruct(paths[0], geometry, array.shape)
            row["voxels different read back"] += sum(
                int((m != region.mask).sum()) for m, region in zip(masks, back, strict=True)
            )


def main():
    warnings.simplefilter("ignore")
    table: dict[str, Counter] = {}
    for _, grid, kind in source_cases():
        with tempfile.TemporaryDirectory() as folder:
            one(Path(folder), grid, kind, table)
    for name, row in table.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()

"""3D Slicer's own segmentation file and tables of labels: names, colors and codes beside the voxels, without DICOM."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unimed.files import write_atomic, write_text
from unimed.geometry import Geometry, lps_to_ras
from unimed.io.codes import Coding
from unimed.io.findings import NOTICE, Finding, findings_of, model_name, presence_words
from unimed.markup import plain_line

_CONTEXT = "Segmentation category and type - DICOM master list"
_REGIONS = "Anatomic codes - DICOM master list"


def as_seg_nrrd(prediction, image=None, formats=(), *, calibrated: bool = False) -> dict:
    """`NAME.seg.nrrd`: overlaps, names, colors, codes and sides, which Slicer opens by drag and drop.

    Raises:
        ValueError: no mask, or masks that differ in shape.
    """
    drawn = drawn_findings(prediction, "seg-nrrd")
    geometry = prediction.geometry or Geometry.pixels()
    layers, places = _layers([_volume(finding.region.mask) for finding in drawn])
    header = _header(drawn, places, layers, geometry, calibrated, model_name(prediction))
    return {".seg.nrrd": partial(_write, header=header, layers=layers)}


def drawn_findings(prediction, form: str) -> list[Finding]:
    """The findings that have a mask, empty ones too.

    Raises:
        ValueError: there is none, or masks differ in shape.
    """
    found = [finding for finding in findings_of(prediction) if finding.region.mask is not None]
    if not found:
        raise ValueError(f"format {form!r} holds masks, and the prediction has none; use 'json'")
    if len(shapes := {finding.region.mask.shape for finding in found}) > 1:
        raise ValueError(f"format {form!r}: masks differ in shape: {sorted(shapes)}")
    return found


def _volume(mask: np.ndarray) -> np.ndarray:
    return mask[..., None] if mask.ndim == 2 else mask


def _layers(masks: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Label maps in which nothing overlaps, and (layer, label) of each mask."""
    layers: list[np.ndarray] = []
    places, counts = [], []
    for mask in masks:
        number = next((n for n, layer in enumerate(layers) if counts[n] < 255 and not layer[mask].any()), len(layers))
        if number == len(layers):
            layers.append(np.zeros(mask.shape, np.uint8))
            counts.append(0)
        counts[number] += 1
        layers[number][mask] = counts[number]
        places.append((number, counts[number]))
    return layers, places


def terminology(coding: Coding) -> str:
    """Codes as Slicer's tag `TerminologyEntry` wants them."""

    def triple(code) -> str:
        parts = (code.scheme, code.value, code.meaning) if code is not None else ("", "", "")
        return "^".join(plain_line(part).translate(str.maketrans("~^|", "   ")) for part in parts)

    parts = (_CONTEXT, triple(coding.category), triple(coding.type), triple(coding.type_modifier), _REGIONS,
             triple(coding.region), triple(coding.region_modifier))  # fmt: skip
    return "~".join(parts)


def _header(drawn, places, layers, geometry: Geometry, calibrated: bool, model: str) -> list[str]:
    shape = layers[0].shape
    several = len(layers) > 1
    affine = lps_to_ras(geometry.affine)  # the same step leads back to LPS

    def vector(values) -> str:
        return "(" + ",".join(repr(float(v)) for v in values) + ")"

    sizes = [str(n) for n in ((len(layers), *shape) if several else shape)]
    lines = ["NRRD0004", f"# {NOTICE}", "type: uint8", f"dimension: {len(sizes)}", "space: left-posterior-superior",
             "sizes: " + " ".join(sizes),
             # A direction belongs to an axis of the array: a column of the affine.
             "space directions: " + " ".join(["none"] * several + [vector(v) for v in affine[:3, :3].T]),
             "kinds: " + "list " * several + "domain domain domain", "endian: little", "encoding: gzip",
             "space origin: " + vector(affine[:3, 3])]  # fmt: skip
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "unimed_notice": NOTICE,
        "unimed_model": model,
    }
    for n, (finding, (layer, label)) in enumerate(zip(drawn, places, strict=True)):
        where = np.argwhere(_volume(finding.region.mask))
        low, high = (where.min(0), where.max(0)) if len(where) else ((0, 0, 0), (-1, -1, -1))
        tags = {
            "TerminologyEntry": terminology(finding.coding),
            "unimed.code": finding.coding.source,
            "unimed.presence": presence_words(finding.region, finding.is_drawn, calibrated),
            "unimed.tracking_uid": finding.tracking_uid,
        }
        clean = str.maketrans("|:", "  ")
        fields |= {
            f"Segment{n}_ID": f"Segment_{finding.number}",
            f"Segment{n}_Name": finding.label,
            f"Segment{n}_NameAutoGenerated": "0",
            f"Segment{n}_Color": " ".join(f"{v / 255:.6g}" for v in finding.color),
            f"Segment{n}_ColorAutoGenerated": "0",
            f"Segment{n}_Layer": str(layer),
            f"Segment{n}_LabelValue": str(label),
            f"Segment{n}_Extent": " ".join(f"{a} {b}" for a, b in zip(low, high, strict=True)),
            f"Segment{n}_Tags": "".join(f"{key}:{value.translate(clean)}|" for key, value in tags.items()),
        }
    # Escapes of the format: a value is one line.
    return lines + [f"{key}:={value.replace(chr(92), chr(92) * 2)}" for key, value in fields.items()]


def _write(path: Path, header: list[str], layers: Sequence[np.ndarray]) -> Path:
    array = np.stack(layers) if len(layers) > 1 else layers[0]
    data = gzip.compress(array.tobytes(order="F"), compresslevel=6, mtime=0)

    def write(temporary: Path) -> None:
        temporary.write_bytes(("\n".join(header) + "\n\n").encode() + data)

    return write_atomic(path, write)


# Tables of labels -----------------------------------------------------------------------------------------------------


def as_label_table(prediction, image=None, formats=()) -> dict:
    """`NAME.labels.tsv` and `NAME.labels.json`: what the numbers of a label map ("nifti", "nrrd", "npz") stand for."""
    rows = [_row(finding) for finding in findings_of(prediction)]
    if not rows:
        raise ValueError("format 'labels' lists regions, and the prediction has none; use 'json'")
    columns = ("index", "name", "color", "scheme", "category", "type", "type_modifier", "region", "region_modifier")
    lines = ["\t".join(columns)]
    for row in rows:
        coded = {part: row["codes"].get(part, {}).get("value", "") for part in columns[4:]}
        plain = row | coded | {"scheme": row["codes"]["type"]["scheme"]}
        lines.append("\t".join(str(plain[column]) for column in columns))
    told = json.dumps({"labels": rows, "notice": NOTICE}, indent=1, ensure_ascii=False)
    return {
        ".labels.tsv": partial(write_text, text="\n".join(lines) + "\n"),
        ".labels.json": partial(write_text, text=told),
    }


def _row(finding: Finding) -> dict:
    codes = finding.coding.to_dict()
    codes.pop("phrase")
    label = getattr(finding.region, "label", None) or finding.number
    return {
        "index": label,
        "name": finding.label,
        "color": "#{:02x}{:02x}{:02x}".format(*finding.color),
        "codes": codes,
        "presence": finding.region.presence,
        "voxels": finding.measurements.voxels if finding.measurements else 0,
    }

"""Volumes with label maps to a 3D set in UniBiomed's layout: axial slices as pictures, and `meta_<split>.json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimed.data.prepare.pieces import add_workers, pieces_of
from unimed.files import read_json, resolve_inside, write_text
from unimed.identity import quick_stamp

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tools/prepare_data.py biomed-volumes`."""
    parser.add_argument("--images", required=True, help="folder of volumes (NIfTI, NRRD, NPZ, folders of DICOM)")
    parser.add_argument("--labels", required=True, help="folder of label maps of the same names, in the same grid")
    parser.add_argument("--names", required=True, help='JSON file {"1": "liver in abdomen CT", ...}')
    parser.add_argument(
        "--out", writes="folder", required=True, help="folder of the set; a split that is there already is refused"
    )
    parser.add_argument("--split", default="train", choices=("train", "test"))
    parser.add_argument(
        "--site", default="", help="CT window: abdomen, brain, lung, ... (default: by file, percentiles)"
    )
    parser.add_argument("--modality", default="", help="CT, MR, ...; default: as the file says")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Write the split; returns the exit code."""
    from unimed.io.read import ReadError

    try:
        names = read_json(args.names)
        print(build(args.images, args.labels, names, args.out, args.split, args.site, args.modality,
                    args.workers))  # fmt: skip
    except (OSError, ReadError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build(
    images, labels, names: Mapping[str, str], out, split: str = "train", site: str = "", modality: str = "",
    workers: int = 1,
) -> Path:  # fmt: skip
    """Write one split of a 3D set; it appears whole or not at all, and an interrupted one goes on.

    Every axial slice is written, seen as usual (the patient's left on the right, the back below); a mask is written for
    each slice that shows the structure.

    Args:
        images, labels: folders; a volume and its label map have one name (suffixes may differ).
        names: {label value: what it is called}; values that are not named are ignored.
        site, modality: see `unimed.io.windows.choose_window`; a volume has one window for all slices.

    Returns:
        the path of `meta_<split>.json`.

    Raises:
        FileNotFoundError: a folder or a label map is missing.
        FileExistsError: the split is there already.
        ReadError: a file cannot be read.
        ValueError: no volumes, a label map of another grid, a name that is no number, or an unknown site.
    """
    out, meta = Path(out), Path(out) / f"meta_{split}.json"
    if meta.exists():
        raise FileExistsError(f"{meta} is there already; remove the split or choose another folder")
    wanted = {int(value): str(name).strip() for value, name in names.items()}
    sources, maps = _volumes(Path(images)), _volumes(Path(labels))
    if not sources:
        raise ValueError(f"{images}: no volume in it; known are {', '.join(SUFFIXES)} and folders of DICOM files")
    if absent := sorted(set(sources) - set(maps)):
        raise FileNotFoundError(f"{labels}: no label map for {', '.join(absent[:5])}")
    settings = {"names": wanted, "site": site, "modality": modality}
    with pieces_of(out / f".preparing-{split}", settings) as pieces:
        items = [(name, sources[name], maps[name]) for name in sorted(sources)]
        keys = [[name, quick_stamp(image), quick_stamp(label)] for name, image, label in items]
        make = _VolumeOf(wanted, pieces.folder, site, modality)
        made = pieces.results(make, items, keys, workers, "volume")
        volumes = {name: one for (name, *_), one in zip(items, made, strict=True)}
        for folder in sorted(pieces.folder.iterdir()):
            if (out / folder.name).exists():
                raise FileExistsError(f"{out / folder.name} is there already; volumes of both splits need other names")
        for folder in sorted(pieces.folder.iterdir()):
            folder.rename(out / folder.name)
        return write_text(meta, json.dumps({"volumes": volumes}))


@dataclass(frozen=True)
class _VolumeOf:
    """Writes the slices of a volume."""

    wanted: dict[int, str]
    root: Path
    site: str
    modality: str

    def __call__(self):
        return lambda item: _write(*item, self.wanted, self.root, self.site, self.modality)


def _volumes(folder: Path) -> dict[str, Path]:
    """Name without suffix -> path."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
        if (suffix or path.is_dir()) and not path.name.startswith("."):
            name = path.name[: len(path.name) - len(suffix)]
            if name in found:
                raise ValueError(f"{found[name]} and {path} have one name; which of them is the volume {name}?")
            found[name] = resolve_inside(folder, path.name)
    return found


def _write(name: str, image_path: Path, label_path: Path, wanted, root: Path, site: str, modality: str) -> dict:
    from PIL import Image

    from unimed.geometry import GeometryError, align, reorient
    from unimed.io.masks import whole_numbers
    from unimed.io.read import read
    from unimed.io.windows import choose_window

    image, geometry = read(image_path)
    truth, truth_geometry = read(label_path)
    if image.ndim != 3:
        raise ValueError(f"{image_path}: shape {image.shape} is no volume")
    try:
        truth, _ = align(truth, truth_geometry, geometry, image.shape)
    except GeometryError as error:
        raise ValueError(f"{label_path}: it is not in the grid of {image_path}: {error}") from error
    image = choose_window(image, geometry, site=site, modality=modality)(image)
    truth = whole_numbers(truth, str(label_path))
    image, truth = reorient(image, geometry, "SPL")[0], reorient(truth, geometry, "SPL")[0]
    (root / name).mkdir(exist_ok=True)
    (root / f"{name}_mask").mkdir(exist_ok=True)
    slices = [f"{name}-s{index:04d}.png" for index in range(len(image))]
    for file, plane in zip(slices, image, strict=True):
        Image.fromarray(np.ascontiguousarray(plane)).save(root / name / file)
    expressions = {}
    for value, phrase in wanted.items():
        shown = [index for index, plane in enumerate(truth) if (plane == value).any()]
        if not shown:
            continue
        masks = [f"{name}_mask/{name}-s{index:04d}_{value}.png" for index in shown]
        for file, index in zip(masks, shown, strict=True):
            Image.fromarray((truth[index] == value).astype(np.uint8) * 255).save(root / file)
        images = [f"{name}/{slices[index]}" for index in shown]
        expressions[str(value)] = {"exp": phrase, "img_file": images, "mask_file": masks}
    return {"slices": slices, "expressions": expressions}

"""NPZ files of the CVPR 2025 challenge, checked and cut into slices for training in 2D.

Written as the published trainer reads them: `SPLIT/NAME_000.png` holds (next, previous, slice) as red, green and blue,
`SPLIT_mask/` the label numbers, `SPLIT.json` the prompts and which labels each slice shows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from unimed.files import resolve_inside

KINDS = ("unreadable", "labels", "prompts", "spacing", "duplicate", "patient leakage")
#: Spacings that differ by no more than this share of the largest count as equal in all directions.
ISOTROPIC = 0.1


def prepare_volumes(args):
    """Check the NPZ files of all splits and export them; returns (Report, paths of the JSON files written)."""
    from unimed.io.challenge import read_prompts

    folder = Path(args.folder)
    flat = sorted(folder.glob("*.npz"))
    splits = {"train": flat} if flat else {}
    for path in sorted(folder.glob("*/*.npz")):
        splits.setdefault(path.parent.name, []).append(path)
    for path in (path for paths in splits.values() for path in paths):
        resolve_inside(folder, path.relative_to(folder))
    given = read_prompts(args.prompts) if args.prompts else None
    report, sound = check_volumes(splits, args.patient_pattern, given)
    if args.check_only or (report.problems and not args.skip_bad):
        return report, []
    out = Path(args.out) if args.out else folder / "slices"
    return report, [export(out, split, paths, given, args.size) for split, paths in sound.items() if paths]


def check_volumes(splits: dict[str, list[Path]], patient_pattern: str | None = None, prompts=None):
    """What is wrong with challenge files: not readable, not 0..255, labels without prompt, uneven shapes, leaks.

    Returns:
        (Report, {split: sound paths})
    """
    from unimed.data.checks import Report
    from unimed.io.challenge import ReadError, read_labels, read_prompts
    from unimed.io.read import read

    report, sound = Report(kinds=KINDS), defaultdict(list)
    contents, patients = defaultdict(set), defaultdict(set)
    for split, paths in splits.items():
        report.parts[split] = len(paths)
        for path in paths:
            try:
                image = read(path)[0]
                labels, spacing = read_labels(path, "gts")
                asked = prompts or read_prompts(path)
            except (ReadError, FileNotFoundError) as error:
                report.problems.append((split, "prompts" if "prompt" in str(error) else "unreadable", str(error)))
                continue
            problems = list(_volume_problems(path.name, image, labels, spacing, asked))
            report.problems += [(split, kind, what) for kind, what in problems]
            contents[hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()].add(
                f"{split}/{path.name}"
            )
            found = re.search(patient_pattern, path.name) if patient_pattern else None
            if found:
                patients[found.group(1)].add((split, path.name))
            if not problems:
                sound[split].append(path)
    for names in contents.values():
        if len(names) > 1:
            report.problems.append(("all", "duplicate", f"identical voxels: {', '.join(sorted(names)[:3])}"))
    for where in patients.values():
        if len(scored := sorted({split for split, _ in where})) > 1:
            names = ", ".join(sorted(name for _, name in where)[:3])
            report.problems.append(("all", "patient leakage", f"one patient in {', '.join(scored)}: {names}"))
    if patient_pattern is None and len(splits) > 1:
        report.remarks.append("patients were not compared; give --patient-pattern, a regular expression with one group")
    return report, dict(sound)


def _volume_problems(name, image, labels, spacing, asked):
    if image.dtype != np.uint8 and (image.min() < 0 or image.max() > 255):
        yield "unreadable", f"{name}: imgs are {image.dtype} from {image.min()} to {image.max()}; bring them to 0..255"
    if labels.shape != image.shape:
        yield "labels", f"{name}: gts are {labels.shape}, imgs {image.shape}"
        return
    there = {int(v) for v in np.unique(labels)} - {0}
    if not there:
        yield "labels", f"{name}: gts are empty"
    if min(there, default=0) < 0 or max(there, default=0) > 65535:
        yield "labels", f"{name}: labels must lie in 0..65535, found {min(there)} to {max(there)}"
    if not asked.instances and (unknown := sorted(there - set(asked.texts))):
        yield "prompts", f"{name}: labels {unknown[:8]} have no prompt; prompts are {sorted(asked.texts)}"
    if spacing is None:
        yield "spacing", f"{name}: no spacing; without it slices cannot be chosen by direction"


def export(out: Path, split: str, paths: list[Path], prompts=None, size: int = 512) -> Path:
    """Cut volumes into slices; returns the path of `SPLIT.json`, which appears last."""
    from unimed.files import write_atomic
    from unimed.io.challenge import read_labels, read_prompts
    from unimed.io.read import read
    from unimed.io.slices import choose_axis

    table, annotations = {}, []
    for path in paths:
        asked = prompts or read_prompts(path)
        dataset = path.stem
        table[dataset] = {str(label): list(words) for label, words in asked.texts.items()}
        table[dataset]["instance_label"] = int(asked.instances)
        image, _ = read(path)
        labels, spacing = read_labels(path, "gts")
        axes = (0, 1, 2) if _even(image.shape, spacing) else (choose_axis(image.shape),)
        for view, axis in enumerate(axes):
            stem = path.stem if view == 0 else f"{path.stem}_view{view}"
            for number, ids in enumerate(_write_slices(out, split, stem, image, labels, axis, size)):
                file = f"{stem}_{number:03d}.png"
                annotations.append(
                    {"mask_file": file, "file_name": file, "split": split}
                    | {"class_ids": [1] * bool(ids) if asked.instances else ids}
                    | {"instance_label": int(asked.instances), "dataset": dataset}
                    | {"modality": path.stem.split("_")[0]}
                )
    text = json.dumps({"class_prompts": table, "annotations": annotations}, indent=1, ensure_ascii=False)
    return write_atomic(out / f"{split}.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def cut(image: np.ndarray, labels: np.ndarray, axis: int, size: int, compat: str | None = None):
    """Slices of one volume for training, one after another.

    Yields:
        (channels uint8 [size, size, 3] as (slice, previous, next), labels [size, size], labels on the slice)
    """
    import torch
    from torch.nn import functional as F

    from unimed.io.slices import SliceGrid, with_neighbors

    grid = SliceGrid(image.shape, axis, size, compat)
    for z in range(grid.depth):
        first, last = max(z - 1, 0), min(z + 2, grid.depth)
        planes = grid.prepare(grid.planes(image, first, last).astype(np.float32)).round().clamp(0, 255).byte()
        channels = with_neighbors(planes, first, z, z + 1, grid.depth)[0].permute(1, 2, 0).numpy()
        mask = np.pad(grid.planes(labels, z, z + 1)[0], grid.pad)
        resized = F.interpolate(torch.from_numpy(mask.astype(np.float32))[None, None], size=(size, size))[0, 0]
        yield channels, resized.numpy().astype(np.uint16 if labels.max() > 255 else np.uint8), np.unique(resized)


def _write_slices(out, split, stem, image, labels, axis, size):
    from PIL import Image

    from unimed.files import write_atomic

    for number, (channels, mask, ids) in enumerate(cut(image, labels, axis, size)):
        name = f"{stem}_{number:03d}.png"
        channels_image = Image.fromarray(np.ascontiguousarray(channels[..., ::-1]))
        write_atomic(out / split / name, lambda path, p=channels_image: p.save(path, format="PNG"))
        write_atomic(out / f"{split}_mask" / name, lambda path, m=mask: Image.fromarray(m).save(path, format="PNG"))
        yield [int(v) for v in ids if v]


def _even(shape, spacing) -> bool:
    """Whether a volume may be cut along all three axes: voxels about cubic, sides of about the same length."""
    if spacing is None or (max(spacing) - min(spacing)) / max(spacing) > ISOTROPIC:
        return False
    pairs = ((shape[0], shape[1]), (shape[1], shape[2]), (shape[0], shape[2]))
    return all(2 * abs(a - b) / (a + b) < 0.5 for a, b in pairs)

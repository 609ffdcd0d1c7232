"""`unimed compare`: two studies of one patient, lesion by lesion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from unimed.commands.common import DONE, Parser, guarded, say
from unimed.evaluation.follow_up import Change, Lesion
from unimed.evaluation.tables import markdown_table
from unimed.files import write_atomic, write_text
from unimed.inference.studies import compare_studies
from unimed.io.findings import NOTICE
from unimed.io.result import Prediction
from unimed.io.views import upright
from unimed.io.windows import to_uint8
from unimed.structures import Region

_DESCRIPTION = """Two studies of one patient: rigid registration, which lesion is which, change of volume and axes, new
and vanished lesions, sum of diameters and category by RECIST 1.1. Research use only.

    unimed compare BASELINE FOLLOW_UP --labels BASELINE_SEG FOLLOW_UP_SEG --out work/compare

Images are DICOM folders, NIfTI, NRRD or MetaImage; labels are DICOM SEG files or label maps of the same grid. Written
are compare.md, compare.json and compare.png; for DICOM images also SEG and SR of both studies with the same tracking
UIDs."""
_COLORS = {"matched": (86, 180, 233), "new": (213, 94, 0), "vanished": (0, 158, 115), "merged": (240, 228, 66),
           "split": (240, 228, 66)}  # fmt: skip


def compare(arguments=None, prog: str | None = None) -> int:
    """Compare the lesions of two studies."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("baseline", type=Path, help="image of the earlier study")
    parser.add_argument("follow_up", type=Path, help="image of the later study")
    parser.add_argument("--labels", nargs=2, type=Path, required=True, metavar=("BASELINE", "FOLLOW_UP"))
    parser.add_argument("--phrase", default="lesion", help="what label maps show; SEG files say it")
    parser.add_argument("--out", writes="folder", type=Path, required=True, help="folder of the results")
    parser.add_argument("--no-register", action="store_true", help="the two studies have the same coordinates already")
    parser.add_argument("--max-distance", type=float, default=15.0, metavar="MM", help="between matched lesions")
    parser.add_argument("--nadir", type=float, metavar="MM", help="smallest sum of diameters of earlier studies")
    parser.add_argument("--deidentified", action="store_true", help="write nothing of the patient")
    parser.add_argument("--seed", type=int, default=0)
    return guarded(_compare, parser.parse_args(arguments))


def _compare(args) -> int:
    studies, motion, changes, found = compare_studies(
        (args.baseline, args.follow_up), args.labels, args.phrase, register=not args.no_register,
        max_distance_mm=args.max_distance, nadir_mm=args.nadir, seed=args.seed,
    )  # fmt: skip
    response, rows, registration = found["response"], found["changes"], found["registration"]
    written = [write_text(args.out / "compare.json", json.dumps({
        "changes": rows, "recist": asdict(response), "registration": registration, "notice": NOTICE,
    }, indent=1))]  # fmt: skip
    text = _markdown(rows, response, registration)
    written.append(write_text(args.out / "compare.md", text))
    written += _image(args.out / "compare.png", changes, studies, motion)
    for name, place, (_, geometry, _) in zip(("baseline", "follow_up"), (0, 1), studies, strict=True):
        written += _report(args.out, name, place, changes, geometry, text, args.deidentified)
    say(text)
    print("written: " + ", ".join(path.name for path in written))
    return DONE


def _markdown(rows, response, registration) -> str:
    columns = ("kind", "phrase", "baseline", "follow_up", "long_axis_mm_baseline", "long_axis_mm_follow_up",
               "long_axis_mm_percent", "short_axis_mm_percent", "volume_ml_baseline", "volume_ml_follow_up",
               "volume_ml_percent", "distance_mm")  # fmt: skip
    table = markdown_table([{c: row[c] for c in columns} for row in rows], digits=2) if rows else "No lesion.\n"
    percent = "" if response.change_percent is None else f" ({response.change_percent:+.0f} %)"
    targets = ", ".join(map(str, response.targets)) or "none"
    return "\n".join([
        table, f"RECIST 1.1: **{response.category}** ({'; '.join(response.reasons)})", "",
        f"Sum of diameters {response.baseline_sum_mm:.1f} to {response.follow_up_sum_mm:.1f} mm{percent}, targets "
        f"{targets} (chosen by size); registration turned by {registration['rotation_degrees']:.2f} degrees.", "",
        f"{NOTICE}: no reader has confirmed targets, new lesions or category", "",
    ])  # fmt: skip


def _report(out: Path, name: str, place: int, changes: Sequence[Change], geometry, text: str, deidentified: bool):
    """SEG and SR of one study, for DICOM images."""
    lesions = [(c.baseline, c.follow_up)[place] for c in changes]
    lesions = [lesion for lesion in lesions if lesion is not None]
    if geometry.source_format != "dicom" or not lesions:
        return []
    result = Prediction("", tuple(Region(lesion.phrase, lesion.mask) for lesion in lesions), geometry)
    tracking = [lesion.tracking for lesion in lesions]
    comments = [text] if place else []
    return result.save(out, name, ("dicom-sr",), tracking=tracking, comments=comments, deidentified=deidentified)


def _image(path: Path, changes: Sequence[Change], studies, motion: np.ndarray, most: int = 8) -> list[Path]:
    """Each lesion in both studies, the same place side by side."""
    from PIL import Image, ImageDraw

    tile, margin, shown = 220, 16, list(changes)[:most]
    if not shown:
        return []
    seen = [upright(to_uint8(array, geometry), geometry) for array, geometry, _ in studies]
    canvas = Image.new("RGB", (2 * tile, len(shown) * (tile + margin) + margin))
    draw = ImageDraw.Draw(canvas)
    for row, change in enumerate(shown):
        there = change.baseline.center_mm if change.baseline is not None else None
        if there is None:
            back = np.linalg.inv(motion)
            there = back[:3, :3] @ change.follow_up.center_mm + back[:3, 3]
        forth = motion[:3, :3] @ there + motion[:3, 3] if change.follow_up is None else change.follow_up.center_mm
        for column, (place_mm, lesion) in enumerate(((there, change.baseline), (forth, change.follow_up))):
            volume, geometry = seen[column]
            image = _crop(volume, geometry, place_mm, lesion, studies[column][1], _COLORS[change.kind], tile)
            canvas.paste(Image.fromarray(image), (column * tile, row * (tile + margin) + margin))
        name = (change.baseline or change.follow_up).tracking[0]
        percent = change.percent("long_axis_mm")
        caption = f"{name}: {change.kind}" + ("" if percent is None else f", long axis {percent:+.0f} %")
        draw.text((3, row * (tile + margin) + 2), caption, fill=(255, 255, 255))
    draw.text((3, canvas.height - margin + 1), f"baseline, follow-up; {NOTICE}", fill=(200, 200, 200))
    return [write_atomic(path, lambda temporary: canvas.save(temporary, format="PNG"))]


def _crop(volume, geometry, place_mm, lesion: Lesion | None, lesion_geometry, color, tile: int, half_mm: float = 40):
    """A square of an axial slice around a place, nearest pixels, with the edge of the lesion."""
    x, y, k = np.linalg.solve(geometry.affine, (*place_mm, 1))[:3]
    k = int(np.clip(round(k), 0, volume.shape[2] - 1))
    steps = (np.arange(tile) + 0.5) / tile * 2 * half_mm - half_mm
    columns = np.rint(x + steps / geometry.spacing[0]).astype(int)
    rows = np.rint(y + steps / geometry.spacing[1]).astype(int)
    inside = ((columns >= 0) & (columns < volume.shape[0]))[None] & ((rows >= 0) & (rows < volume.shape[1]))[:, None]
    columns, rows = np.clip(columns, 0, volume.shape[0] - 1), np.clip(rows, 0, volume.shape[1] - 1)
    image = np.repeat(np.where(inside, volume[:, :, k].T[np.ix_(rows, columns)], 0)[..., None], 3, -1).astype(np.uint8)
    if lesion is not None:
        mask = upright(lesion.mask, lesion_geometry)[0][:, :, k].T[np.ix_(rows, columns)] & inside
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        image[mask & ~inner] = color
    return image

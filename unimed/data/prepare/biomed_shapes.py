"""A `data/Biomed` tree of discs and squares: every kind of set UniBiomed trains on, in seconds, to try the pipeline.

The pictures are drawn, not measured; nothing medical can be learnt from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from unimed.files import atomic_folder

SIDE_PX = 64
SHAPES = ("disc", "square")
SPLITS = {"train": 10, "test": 4}
MARK = "shapes.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tools/prepare_data.py biomed-shapes`."""
    parser.add_argument(
        "--out", writes="folder", default="data/biomed_shapes", help="folder to write (default: data/biomed_shapes)"
    )
    parser.add_argument("--force", action="store_true", help="draw again even if the folder is there")


def run(args: argparse.Namespace) -> int:
    """Draw the tree; returns the exit code."""
    try:
        print(build(args.out, args.force))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build(out, force: bool = False) -> Path:
    """Draw the tree at `out`; it appears whole or not at all.

    Raises:
        ValueError: `out` is there and was not drawn by this function.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise ValueError(f"{out} exists and holds no {MARK}; name another folder with --out")
        if not force:
            return out
    with atomic_folder(out, replace=True) as temporary:
        _draw(temporary)
    return out


def draw_shape(shape: str, seed: int, radius: float = 12) -> tuple[np.ndarray, np.ndarray]:
    """Grey picture (uint8) with one bright shape on noise, and its mask (bool); `radius` 0 leaves the shape out."""
    draw = np.random.default_rng(seed)
    center_y, center_x = draw.uniform(18, SIDE_PX - 18, size=2)
    radius = radius * draw.uniform(0.7, 1.1)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    if shape == "disc":
        mask = (y - center_y) ** 2 + (x - center_x) ** 2 < radius**2
    else:
        mask = (abs(y - center_y) < 0.8 * radius) & (abs(x - center_x) < 0.8 * radius)
    image = draw.integers(20, 90, size=mask.shape)
    image[mask] += 140
    return image.astype(np.uint8), mask


def _draw(root: Path) -> None:
    _coco(root / "Shapes", SHAPES)
    _coco(root / "Disease" / "Disc", ("disc",), seed=100)
    _coco(root / "Disease" / "Square", ("square",), seed=200)
    _coco(root / "MedTrinity", SHAPES, seed=300, captions=True)
    _radgenome(root / "RadGenome")
    _volumes(root / "3D" / "Shapes")
    (root / MARK).write_text(json.dumps({"note": "drawn discs and squares, no medical images"}))


def _save(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image if image.dtype == np.uint8 else image.astype(np.uint8) * 255).save(path)


def _coco(root: Path, shapes, seed: int = 0, captions: bool = False) -> None:
    for split, count in SPLITS.items():
        images, annotations = [], []
        for number in range(count):
            shape = shapes[number % len(shapes)]
            image, mask = draw_shape(shape, seed + number + 1000 * (split == "test"))
            name, mask_name = f"p{split}{number}_1.png", f"p{split}{number}_1_{shape}.png"
            folder = root if captions else root / split
            _save(folder / (f"images/{name}" if captions else name), image)
            images.append({"id": number, "file_name": name, "height": SIDE_PX, "width": SIDE_PX})
            entry = {"id": number, "image_id": number, "file_name": f"images/{name}" if captions else name}
            if captions:
                side = "left" if np.nonzero(mask)[1].mean() < SIDE_PX / 2 else "right"
                annotations.append(entry | {"caption": f"a bright {shape} on the {side} side of a drawn image."})
                continue
            _save(root / f"{split}_mask" / mask_name, mask)
            sentences = [
                {"raw": f"{shape} in drawn image", "sent": f"{shape} in drawn image"},
                {"raw": f"bright {shape} in drawn image", "sent": f"bright {shape} in drawn image"},
            ]
            annotations.append(
                entry | {"mask_file": mask_name, "split": split, "category_id": 1, "sentences": sentences}
            )
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "shape"}]}
        (root / f"{split}.json").write_text(json.dumps(content))


def _radgenome(root: Path) -> None:
    for split, count in SPLITS.items():
        entries = {}
        for number in range(count):
            there = number % 3 != 2
            shape = SHAPES[number % 2]
            image, mask = draw_shape(shape, 400 + number + 1000 * (split == "test"), 12 if there else 0)
            _save(root / "images" / f"r{split}{number}_1.png", image)
            _save(root / "masks" / f"r{split}{number}_1.png", mask & there)
            entries[f"r{split}{number}"] = {
                "abnormality": f"bright {shape}" if there else "No findings",
                "report": f"A bright {shape} is drawn." if there else "Nothing is drawn.",
                "anatomy": "drawn image",
                "image_file": f"images/r{split}{number}_1.png",
                "mask_file": f"masks/r{split}{number}_1.png",
            }
        (root / f"{split}_parse.json").write_text(json.dumps(entries))


def _volumes(root: Path, slices: int = 8) -> None:
    for split, count in {"train": 3, "test": 1}.items():
        volumes = {}
        for number in range(count):
            volume = f"v{split}{number}"
            names = [f"{volume}-s{index}.png" for index in range(slices)]
            expressions = {}
            for key, shape in enumerate(SHAPES[number % 2 :][:1]):
                images, masks = [], []
                for index, name in enumerate(names):
                    # A ball: the object is largest in the middle and not there at the ends.
                    radius = 14 * max(0.0, 1 - (abs(index - 3.5) / 3) ** 2) ** 0.5
                    image, mask = draw_shape(shape, 500 + number + 1000 * (split == "test"), radius)
                    _save(root / volume / name, image)
                    if mask.any():
                        _save(root / f"{volume}_mask" / name.replace(".png", f"_{shape}.png"), mask)
                        images.append(f"{volume}/{name}")
                        masks.append(f"{volume}_mask/{name.replace('.png', f'_{shape}.png')}")
                expressions[str(key)] = {"exp": f"{shape} in drawn volume", "img_file": images, "mask_file": masks}
            volumes[volume] = {"slices": names, "expressions": expressions}
        (root / f"meta_{split}.json").write_text(json.dumps({"volumes": volumes}))

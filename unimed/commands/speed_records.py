"""Records that `unimed speed all` trains on: noise for images, texts as long as those of the quickstart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

#: (width, height) of the images, as they occur in the sample set.
SIZES = ((197, 233), (512, 512), (256, 256), (197, 233), (128, 128), (197, 233))
#: How often each task comes, as in `configs/quickstart/unified_small.py` without its volumes.
WEIGHTS = {
    "referring": 4.0, "absent": 2.0, "vqa": 2.0, "box": 1.5, "report": 1.5, "classification": 1.0, "region": 1.0,
    "caption": 0.5,
}  # fmt: skip
_PARTS = ("liver", "left kidney", "spleen", "gall bladder", "lesion", "white matter")
_MODALITIES = ("CT", "MRI", "X-ray", "ultrasound", "fluorescence microscopy", "histology", "bone scan")


def write_records(folder: str | Path, count: int, images: int, seed: int = 0) -> Path:
    """Write `count` records over so many images in the layout of `data/formats.md`; returns the folder."""
    folder, numbers = Path(folder), np.random.default_rng(seed)
    for name in ("images", "masks", "records"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        width, height = SIZES[number % len(SIZES)]
        Image.fromarray(numbers.integers(0, 255, (height, width), dtype=np.uint8)).save(_image(folder, number))
        for kind in range(3):
            mask, across, down = np.zeros((height, width), np.uint8), width // 8 * (1 + kind), height // 8 * (1 + kind)
            mask[down : down + height // 3, across : across + width // 3] = 255
            Image.fromarray(mask).save(folder / "masks" / f"{number}-{kind}.png")
    chances = np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())
    with open(folder / "records" / "train.jsonl", "w", encoding="utf-8") as stream:
        for number, task in enumerate(numbers.choice(list(WEIGHTS), count, p=chances)):
            image = int(numbers.integers(images))
            question, answer, regions = _talk(str(task), image, SIZES[image % len(SIZES)], numbers)
            record = {
                "id": f"record-{number}", "task": str(task), "image": f"images/{image}.png", "question": question,
                "answer": answer, "regions": regions, "license": "CC0-1.0", "split": "train",
            }  # fmt: skip
            stream.write(json.dumps(record) + "\n")
    return folder


def _image(folder: Path, number: int) -> Path:
    return folder / "images" / f"{number}.png"


def _talk(task: str, image: int, size: tuple[int, int], numbers) -> tuple[str, str, list[dict]]:
    part, modality = str(numbers.choice(_PARTS)), str(numbers.choice(_MODALITIES))
    percent = int(numbers.integers(1, 60))
    masks = ({"phrase": part, "mask": f"masks/{image}-{kind}.png", "present": True} for kind in range(3))
    if task == "referring":
        return f"Where is the {part}? Answer with a mask.", f"<p> {part} </p> [SEG].", [next(masks)]
    if task == "absent":
        question = f"Is there any {part} in this image? If so, segment it."
        if numbers.random() < 0.5:
            return question, f"Yes, <p> {part} </p> [SEG].", [next(masks)]
        return question, f"No, the {part} is not visible.", [{"phrase": part, "present": False}]
    if task == "box":
        # Some ask for every one of many things: their answers are the longest.
        boxes = list(_boxes(1 if numbers.random() < 0.75 else 12, part, size, numbers))
        question = "Put a box around every one you see." if len(boxes) > 1 else f"Where is the {part}? Give a box."
        return question, ", ".join(f"<p> {part} </p> [BOX]" for _ in boxes) + ".", boxes
    if task == "report":
        regions = [next(masks) for _ in range(int(numbers.integers(1, 4)))]
        found = " ".join(f"There is <p> {part} </p> [SEG], covering {percent} percent of it." for _ in regions)
        return "Write a short report and point at what you mention.", f"{modality} of the body. {found}", regions
    if task == "region":
        answer = f"Region1 shows {part}, {modality}. It covers {percent} percent of the image and lies in the middle."
        return "Describe region1.", answer, [next(masks)]
    if task == "classification":
        return f"Classify the modality: {', '.join(_MODALITIES)}.", modality, []
    if task == "caption":
        return "Write a caption for this image.", f"{modality} of the {part}.", []
    return "Which imaging modality is this?", f"{modality}.", []


def _boxes(count: int, phrase: str, size: tuple[int, int], numbers) -> Iterator[dict]:
    for _ in range(count):
        left, top = (int(numbers.integers(0, length // 2)) for length in size)
        yield {"phrase": phrase, "box_xyxy_px": [left, top, left + size[0] // 4, top + size[1] // 4], "present": True}

"""2D results as annotation tools read them: COCO, LabelMe and Label Studio."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unimed.files import write_text
from unimed.io.findings import NOTICE, Finding, findings_of, model_name
from unimed.io.rle import encode_mask
from unimed.version import __version__


def as_coco(prediction, image=None, formats=()) -> dict:
    """`NAME.coco.json`: instances with uncompressed run lengths (`iscrowd` 1, as COCO marks them), boxes and scores.

    Raises:
        ValueError: masks of a volume, or an image whose size is not known.
    """
    found, (height, width), name = _checked(prediction, image, "coco")
    categories = {label: number for number, label in enumerate(dict.fromkeys(f.label for f in found), 1)}
    annotations = []
    for finding in found:
        box = _box(finding)
        if box is None:
            continue
        x1, y1, x2, y2 = box
        mask = finding.region.mask
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": categories[finding.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(mask.sum()) if finding.is_drawn else (x2 - x1) * (y2 - y1),
                "segmentation": encode_mask(mask) if finding.is_drawn else [[x1, y1, x2, y1, x2, y2, x1, y2]],
                "iscrowd": int(finding.is_drawn),
                **({} if (score := _score(finding)) is None else {"score": score}),
            }
        )
    values = {
        "info": {"description": NOTICE, "contributor": model_name(prediction), "version": __version__},
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
        "annotations": annotations,
    }
    return {".coco.json": partial(write_text, text=json.dumps(values, ensure_ascii=False))}


def as_labelme(prediction, image=None, formats=()) -> dict:
    """`NAME.labelme.json`: masks as shapes of kind "mask", boxes as rectangles; the image is named, not held.

    Raises:
        ValueError: masks of a volume, or an image whose size is not known.
    """
    found, (height, width), name = _checked(prediction, image, "labelme")
    shapes = []
    for finding in found:
        box = _box(finding)
        if box is None:
            continue
        shape = {"label": finding.label, "group_id": None, "description": finding.sentence, "flags": {}}
        if finding.is_drawn:
            x1, y1, x2, y2 = map(int, box)
            part = finding.region.mask[y1:y2, x1:x2]
            # Its corners are pixels inside the mask, both of them.
            shape |= {"shape_type": "mask", "points": [[x1, y1], [x2 - 1, y2 - 1]], "mask": _png(part)}
        else:
            shape |= {"shape_type": "rectangle", "points": [[box[0], box[1]], [box[2], box[3]]], "mask": None}
        shapes.append(shape)
    values = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None,
              "imageHeight": height, "imageWidth": width}  # fmt: skip
    return {".labelme.json": partial(write_text, text=json.dumps(values, indent=1, ensure_ascii=False))}


def as_label_studio(prediction, image=None, formats=(), *, image_url: str = "") -> dict:
    """`NAME.labelstudio.json`: one task with a prediction, for import; masks as brush labels, boxes as rectangles.

    Args:
        image_url: where Label Studio finds the image; by default its file name.

    Raises:
        ValueError: masks of a volume, or an image whose size is not known.
    """
    found, size, name = _checked(prediction, image, "label-studio")
    made = label_studio_prediction(prediction, found, size)
    task = {"data": {"image": image_url or name, "text": prediction.text}, "predictions": [made]}
    return {".labelstudio.json": partial(write_text, text=json.dumps([task], ensure_ascii=False))}


def label_studio_prediction(
    prediction, found: Sequence[Finding], size: tuple[int, int], *, brush: str | None = "brush",
    rectangle: str | None = "label", to_name: str = "image", label: str | None = None,
) -> dict:  # fmt: skip
    """A prediction of a Label Studio task: masks as brush labels, boxes as rectangles in percent.

    Args:
        size: (height, width) of the image.
        brush, rectangle: names of the tags of the labelling interface; a mask without a brush becomes its rectangle,
            and what has no tag is left out.
        label: what every region is called there; by default each its phrase.
    """
    (height, width), result = size, []
    for finding in found:
        box = _box(finding)
        if box is None:
            continue
        named = [label or finding.label]
        item = {"id": f"region{finding.number}", "to_name": to_name, "original_width": width, "original_height": height,
                "image_rotation": 0}  # fmt: skip
        if (score := _score(finding)) is not None:
            item["score"] = score
        if finding.is_drawn and brush is not None:
            item |= {"type": "brushlabels", "from_name": brush}
            item["value"] = {"format": "rle", "rle": brush_runs(finding.region.mask), "brushlabels": named}
        elif rectangle is not None:
            x1, y1, x2, y2 = box
            item |= {"type": "rectanglelabels", "from_name": rectangle}
            item["value"] = {
                "x": 100 * x1 / width, "y": 100 * y1 / height, "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height, "rotation": 0, "rectanglelabels": named,
            }  # fmt: skip
        else:
            continue
        result.append(item)
    scores = [item["score"] for item in result if "score" in item]
    made = {"model_version": f"{model_name(prediction)} ({NOTICE})", "result": result}
    return made | ({"score": float(np.mean(scores))} if scores else {})


def brush_runs(mask: np.ndarray) -> list[int]:
    """A mask HxW as the run lengths of Label Studio's brush: bytes of a bit stream over four channels of each pixel.

    The stream holds the number of values (32 bits), the size of a value less one (5 bits), four sizes of counters less
    one (4 bits each), then runs: 1 bit whether all values are equal, 2 bits which counter, the length less one, and the
    value, or that many values.
    """
    values = np.repeat(np.where(mask.ravel(), 255, 0).astype(np.uint8), 4)
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((starts, [len(values)])))
    sizes = (3, 4, 8, 16)
    bits = [f"{len(values):032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in sizes)]
    for start, length in zip(starts, lengths, strict=True):
        value = f"{int(values[start]):08b}"
        while length > 0:
            run = min(int(length), 2**16)
            which = next(n for n, size in enumerate(sizes) if run <= 2**size)
            bits.append(f"1{which:02b}{run - 1:0{sizes[which]}b}{value}")
            length -= run
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[k : k + 8], 2) for k in range(0, len(stream), 8)]


def _checked(prediction, image, form: str) -> tuple[list[Finding], tuple[int, int], str]:
    found = findings_of(prediction)
    masks = [finding.region.mask for finding in found if finding.region.mask is not None]
    if any(mask.ndim != 2 for mask in masks):
        raise ValueError(f"format {form!r} holds 2D masks, this prediction is of a volume; use 'nifti' or 'seg-nrrd'")
    source = getattr(prediction, "image", None)
    if masks:
        size = masks[0].shape
    elif image is not None:
        size = image.shape[:2]
    elif source is not None and len(source.shape) >= 2:
        size = source.shape[:2]
    else:
        raise ValueError(f"format {form!r} needs the size of the image; give image=")
    name = Path(source.name).name if source is not None and source.name else "image"
    return found, (int(size[0]), int(size[1])), name


def _box(finding: Finding) -> tuple[float, float, float, float] | None:
    """xyxy of the mask where there is one, else of the box."""
    if not finding.is_drawn:
        box = finding.region.box_xyxy_px
        return None if box is None else tuple(map(float, box))
    rows, columns = (np.flatnonzero(finding.region.mask.any(axis)) for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _score(finding: Finding) -> float | None:
    region = finding.region
    return region.confidence if region.confidence is not None else region.presence


def _png(mask: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()

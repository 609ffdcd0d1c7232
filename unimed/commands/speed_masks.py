"""Rows of `unimed speed all` for the mask stage: five boxes on one image, beside the sam2 package and transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from unimed.commands.speed_rows import Sizes, operations, row, seconds_of_products

BOXES = 5


def masks(sizes: Sizes, repeat: int, peak: float) -> list[dict]:
    """An image of bytes and five boxes to five masks in its size; all ways hold the same random weights.

    The image has the side that the encoder reads, so that no way of stretching it makes a difference.
    """
    import numpy as np
    import torch

    from unimed.models.starting.rivals import random_sam2, sam2_predictor

    head, predictor = random_sam2(**sizes.mask_encoder), None
    published = not sizes.mask_encoder  # one that the sam2 package describes
    if published and importlib.util.find_spec("sam2"):
        predictor = sam2_predictor(head)
    side = head.image_size
    numbers = np.random.default_rng(0)
    image = numbers.integers(0, 255, (side, side, 3), dtype=np.uint8)
    corners = numbers.uniform(0, 0.5 * side, (BOXES, 2))
    boxes = np.concatenate([corners, corners + numbers.uniform(0.1, 0.5, (BOXES, 2)) * side], axis=1)
    ways: dict[str, Callable] = {"ours": lambda: _ours(head, image, boxes)}
    ways["transformers Sam2Model"] = _transformers(head, image, boxes)
    if predictor is not None:

        def package():
            predictor.set_image(image)
            found, _, _ = predictor.predict(box=boxes.astype(np.float32), multimask_output=False)
            return torch.from_numpy(found[:, 0] > 0)

        ways["sam2 package"] = package
    gflop = operations(ways["ours"])
    made, rows = {name: way() for name, way in ways.items()}, []
    for other in list(ways)[1:]:
        pair = {"ours": ways["ours"], other: ways[other]}
        differing = float((made["ours"] != made[other]).float().mean())
        measured = row(f"mask stage, {BOXES} boxes on an image of {side} px", pair, repeat, gflop, peak)
        products = seconds_of_products(ways["ours"], repeat) / measured["ours_cpu_s"]
        rows.append(measured | {"share_in_products": products, "pixels_that_differ": differing})
    if published and predictor is None:
        rows.append({"what": "mask stage", "other": "sam2 is not installed (pip install sam2)"})
    return rows


def _normalized(image):
    import torch

    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean) / std


def _ours(head, image, boxes):
    import torch

    from unimed.models.heads.mask import resize_mask_logits

    with torch.no_grad():
        features = head.encode(_normalized(image))
        given = torch.from_numpy(boxes).float()
        found = head.decode_boxes(features, torch.zeros(len(given), dtype=torch.long), given)
        return resize_mask_logits(found.logits, image.shape[:2], head.image_size) > 0


def _transformers(head, image, boxes) -> Callable:
    """`Sam2Model` with the weights of our head, and masks stretched as its processor does it."""
    import torch
    from torch.nn import functional as F

    from unimed.models.starting.rivals import sam2_of_transformers

    model = sam2_of_transformers(head)
    given = torch.from_numpy(boxes).float()[None]

    @torch.no_grad()
    def theirs():
        found = model(pixel_values=_normalized(image), input_boxes=given, multimask_output=False).pred_masks[0]
        return F.interpolate(found, image.shape[:2], mode="bilinear", align_corners=False)[:, 0] > 0

    return theirs

"""What lies in boxes that a user gives, cut out by the decoder a mask head was published with."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from unimed.io.boxes_given import regions_of_boxes, window_around
from unimed.io.images import load as load_image
from unimed.io.result import Prediction
from unimed.models.heads.mask import resize_mask_logits
from unimed.structures import Region


@torch.no_grad()
def segment_boxes(model, image, boxes_xyxy_px: Sequence, phrases: Sequence[str] = (), site: str = "") -> Prediction:
    """Cut out what lies in given boxes, by the decoder the mask head was published with.

    Args:
        boxes_xyxy_px: N boxes in pixels of the image.
        phrases: a name per box; numbered where none is given.

    Raises:
        ValueError: no box, or a box that is not four finite numbers, has no area, or lies outside the image.
    """
    model.eval()
    source = load_image(image, site=site)
    height, width = source.rgb.shape[:2]
    regions = regions_of_boxes(boxes_xyxy_px, phrases, width, height)
    begin = time.perf_counter()
    # LiteMedSAM is shown the surroundings of a box; the others the whole image, once for all boxes.
    zoom = getattr(getattr(model.mask_head, "config", None), "box_zoom", None)
    if zoom is None:
        windows, which = [(0, 0, width, height)], [0] * len(regions)
    else:
        windows, which = [window_around(r.box_xyxy_px, zoom, width, height) for r in regions], range(len(regions))
    side = model.mask_head.image_size
    masks = np.zeros((len(regions), height, width), dtype=bool)
    quality = [0.0] * len(regions)
    for number, (left, top, right, bottom) in enumerate(windows):
        rows = [row for row, window in enumerate(which) if window == number]
        pixels = model.processor.mask_pixels(np.ascontiguousarray(source.rgb[top:bottom, left:right]))
        frame = model.processor.frame((bottom - top, right - left))
        boxes = (np.array([regions[row].box_xyxy_px for row in rows]) - [left, top, left, top]) * frame.scale
        features = model.mask_head.encode(pixels[None].to(model.device))
        index = torch.zeros(len(rows), dtype=torch.long, device=model.device)
        boxes = torch.tensor(boxes, dtype=torch.float32, device=model.device).reshape(-1, 4)
        output = model.mask_head.decode_boxes(features, index, boxes)
        inside = resize_mask_logits(output.logits, frame.image_hw, side, frame.content_hw) > 0
        masks[rows, top:bottom, left:right] = inside.cpu().numpy()
        for row, iou in zip(rows, output.iou.tolist(), strict=True):
            quality[row] = iou
    regions = [
        Region(r.phrase, mask=mask, box_xyxy_px=r.box_xyxy_px, confidence=_unit(iou))
        for r, mask, iou in zip(regions, masks, quality, strict=True)
    ]
    return Prediction(
        "", tuple(regions), source.geometry, {"masks": time.perf_counter() - begin}, model._reference(),
        image=source.source,
    )  # fmt: skip


def _unit(value: float) -> float:
    return float(min(1.0, max(0.0, value)))

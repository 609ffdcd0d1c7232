"""Samples to the batch a grounded model trains on."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image

from unimed.registry import COLLATORS
from unimed.structures import Sample
from unimed.tokens import BOX_TOKEN, SEG_TOKEN


class RegionCountError(ValueError):
    """An answer whose [SEG] and [BOX] tokens are not matched by masks and boxes, one to one."""


@COLLATORS.register_module()
class GroundedCollator:
    """Tokens, images and region targets of a list of samples.

    Targets stand in the order of their tokens: the k-th [SEG] or [BOX] of an answer belongs to the k-th region of the
    sample.

    Args:
        processor: a `GroundedProcessor`.
        mask_target_size: side of the square masks are compared at; None takes the mask head's input size.
    """

    def __init__(self, processor=None, mask_target_size: int | None = None):
        self.processor = processor
        self.mask_target_size = mask_target_size or processor.mask_size

    def __call__(self, samples: list[Sample]) -> dict:
        rows = [self._row(sample) for sample in samples]
        length = max(len(ids) for ids, _, _, _ in rows)
        pad = self.processor.tokenizer.pad_token_id or 0
        input_ids = torch.full((len(rows), length), pad)
        labels = torch.full((len(rows), length), -100)
        attention = torch.zeros(len(rows), length, dtype=torch.long)
        for row, (ids, row_labels, _, _) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(row_labels)
            attention[row, : len(ids)] = 1
        pixels = [row[2] for row in rows]
        tiles = [row[3] for row in rows]
        batch = {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": attention,
            "mask_pixel_values": torch.stack(pixels),
            "image_keys": [hashlib.sha1(p.numpy().tobytes()).hexdigest() for p in pixels],
            "sample_ids": [sample.sample_id for sample in samples],
            **self._targets(samples),
        }
        if tiles[0] is not None:
            batch["pixel_values"] = torch.cat(tiles)
        return batch

    def _row(self, sample: Sample):
        image = sample.images[0]
        rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        if rgb.dtype != np.uint8:
            raise ValueError(
                f"sample {sample.sample_id}: images are uint8 by the time they are batched, got {rgb.dtype}"
            )
        tiles = self.processor.tiles(rgb)
        count = 1 if tiles is None else len(tiles)
        ids, labels = self.processor.encode_example(sample.conversation, count)
        return ids, labels, self.processor.mask_pixels(rgb), tiles

    def _targets(self, samples: list[Sample]) -> dict:
        masks, presence, boxes = [], [], []
        for sample in samples:
            answers = "".join(text for role, text in sample.conversation if role == "assistant")
            order = _tokens_in_order(answers)
            regions = _asked_for(sample, len(order))
            if len(order) != len(regions):
                raise RegionCountError(
                    f"sample {sample.sample_id}: {len(order)} [SEG]/[BOX] tokens in the answer for "
                    f"{len(regions)} regions; write one token per region"
                )
            height, width = sample.images[0].shape[:2]
            for token, region in zip(order, regions, strict=True):
                if token == SEG_TOKEN:
                    there = region.presence is None or region.presence >= 0.5
                    if region.mask is None and there:
                        raise RegionCountError(f"sample {sample.sample_id}: [SEG] for {region.phrase!r} has no mask")
                    masks.append(self._mask(region.mask, (height, width)))
                    presence.append(float(there and bool(region.mask.any())))
                else:
                    if region.box_xyxy_px is None:
                        raise RegionCountError(f"sample {sample.sample_id}: [BOX] for {region.phrase!r} has no box")
                    x1, y1, x2, y2 = region.box_xyxy_px
                    boxes.append((x1 / width, y1 / height, x2 / width, y2 / height))
        size = self.mask_target_size
        return {
            "masks": torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, size, size),
            "presence": torch.tensor(presence),
            "boxes_xyxy": torch.tensor(boxes).reshape(-1, 4),
        }

    def _mask(self, mask: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
        side = self.mask_target_size
        if mask is None:
            return np.zeros((side, side), dtype=np.float32)
        if mask.shape != size:
            raise ValueError(f"a mask of {mask.shape} does not fit its image of {size}")
        # Box filter when shrinking: thin structures fade instead of vanishing, the loss accepts soft targets.
        picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX)
        return (np.asarray(picture, dtype=np.float32) >= 127.5).astype(np.float32)


def _asked_for(sample: Sample, tokens: int) -> list:
    """Regions the answer points at: not those given with the question, nor absent ones the answer only denies."""
    if sample.labels.get("task") == "region":
        return []
    if len(sample.regions) == tokens:
        return list(sample.regions)
    return [region for region in sample.regions if region.presence is None or region.presence >= 0.5]


def _tokens_in_order(text: str) -> list[str]:
    order, place = [], 0
    while True:
        found = [(text.find(token, place), token) for token in (SEG_TOKEN, BOX_TOKEN)]
        found = [item for item in found if item[0] >= 0]
        if not found:
            return order
        at, token = min(found)
        order.append(token)
        place = at + len(token)

"""Samples to the batch a grounded model trains on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from unimed.registry import COLLATORS
from unimed.structures import Sample
from unimed.tokens import BOX_TOKEN, SEG_TOKEN


class RegionCountError(ValueError):
    """An answer whose [SEG] and [BOX] tokens are not matched by masks and boxes, one to one."""


@dataclass
class _Row:
    """What one sample gives: token ids and labels, and its frames (one for an image)."""

    ids: list[int]
    labels: list[int]
    mask_pixels: list[torch.Tensor]
    pixels: list[torch.Tensor]
    grids: list[torch.Tensor]
    units: list[int]
    read: list[int]  # the frames the language model sees
    cells: torch.Tensor | None


@COLLATORS.register_module()
class GroundedCollator:
    """Tokens, images and region targets of a list of samples.

    Targets stand in the order of their tokens: the k-th [SEG] or [BOX] of an answer belongs to the k-th region of the
    sample. The regions of a sample of task "region" are given with the question instead: the image tokens under them
    stand behind the image. A sample of task "volume" (DxHxW) is read as frames, one tile each, and each of its [SEG]
    has a mask in every frame.

    Args:
        processor: a `GroundedProcessor`.
        mask_target_size: side of the square masks are compared at; None takes the mask head's input size.
        language_frames: most frames of a volume the language model sees, spread evenly; None shows it all of them, as
            UniBiomed trains. The mask head sees all in any case.
        pack: tokens per row; several samples then share a row, none sees another, and the samples of the batch come in
            the order of the rows. 0 gives each sample a row, padded to the longest. A sample longer than `pack` makes
            the rows as long as itself.
    """

    def __init__(
        self,
        processor=None,
        mask_target_size: int | None = None,
        language_frames: int | None = None,
        pack: int = 0,
    ):
        self.processor, self.pack = processor, pack
        self.mask_target_size = mask_target_size or processor.mask_size
        self.language_frames = language_frames

    def __call__(self, samples: list[Sample]) -> dict:
        rows = [self._row(sample) for sample in samples]
        if self.pack:
            tokens, order = self._packed(rows)
            rows, samples = [rows[i] for i in order], [samples[i] for i in order]
        else:
            tokens = self._padded(rows)
        pixels = [frame for row in rows for frame in row.mask_pixels]
        batch = {
            **tokens,
            "mask_pixel_values": torch.stack(pixels),
            "image_keys": [hashlib.sha1(p.numpy().tobytes()).hexdigest() for p in pixels],
            "sample_ids": [sample.sample_id for sample in samples],
            "tasks": [str(sample.labels.get("task", "")) for sample in samples],
            "pictures_per_sample": [sum(1 if row.grids else len(t) for t in row.pixels) for row in rows],
            **self._targets(samples),
        }
        if rows[0].pixels:
            batch["pixel_values"] = torch.cat([tiles for row in rows for tiles in row.pixels])
        if rows[0].grids:
            batch["image_grid_thw"] = torch.cat([grid for row in rows for grid in row.grids])
        if any(row.cells is not None for row in rows):
            batch["image_token_index"] = self._token_index(rows)
        if any(len(row.mask_pixels) > 1 for row in rows):
            batch |= self._frames(samples, rows)
        return batch

    def _padded(self, rows: list[_Row]) -> dict[str, torch.Tensor]:
        length = max(len(row.ids) for row in rows)
        pad = self.processor.tokenizer.pad_token_id or 0
        input_ids = torch.full((len(rows), length), pad)
        labels = torch.full((len(rows), length), -100)
        attention = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
            labels[index, : len(row.ids)] = torch.tensor(row.labels)
            attention[index, : len(row.ids)] = 1
        return {"input_ids": input_ids, "labels": labels, "attention_mask": attention}

    def _packed(self, rows: list[_Row]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """Tokens of several samples per row, and the order of the samples in reading order."""
        from unimed.data.collate.packing import block_diagonal_mask, pack_rows

        if any(row.grids for row in rows):
            raise ValueError("this backbone counts positions by the picture, which packed rows do not; set pack=0")
        sequences = [{"input_ids": torch.tensor(row.ids), "labels": torch.tensor(row.labels)} for row in rows]
        budget = max(self.pack, *(len(row.ids) for row in rows))
        pad = {"input_ids": self.processor.tokenizer.pad_token_id or 0, "labels": -100}
        packed = pack_rows(sequences, budget, pad)
        members, segments = packed.pop("members"), packed.pop("segment_ids")
        starts = torch.tensor([0] + [len(row) for row in members[:-1]]).cumsum(0)
        packed["sequence_of_token"] = torch.where(segments > 0, starts[:, None] + segments - 1, -1)
        packed["attention_mask"] = block_diagonal_mask(segments)
        return packed, [i for row in members for i in row]

    def _row(self, sample: Sample) -> _Row:
        image = sample.images[0]
        if image.dtype != np.uint8:
            raise ValueError(
                f"sample {sample.sample_id}: images are uint8 by the time they are batched, got {image.dtype}"
            )
        volume = _is_volume(sample)
        frames = [_rgb(frame) for frame in image] if volume else [_rgb(image)]
        read = list(range(len(frames)))
        if self.language_frames is not None and len(read) > self.language_frames:
            read = np.linspace(0, len(frames) - 1, self.language_frames).round().astype(int).tolist()
        most = 1 if volume else None
        pixels = [self.processor.pixels(frames[index], most) for index in read]
        size = frames[0].shape[:2]
        units = [self.processor.unit_count(*size, most)] * len(read)
        cells = None
        if sample.labels.get("task") == "region" and sample.regions:
            cells = self._cells(sample, size)
        ids, labels = self.processor.encode_example(sample.conversation, units if volume else units[0], cells=cells)
        return _Row(
            ids,
            labels,
            [self.processor.mask_pixels(frame) for frame in frames],
            [tiles for tiles, _ in pixels if tiles is not None],
            [grid for _, grid in pixels if grid is not None],
            units,
            read,
            cells,
        )

    def _cells(self, sample: Sample, size: tuple[int, int]) -> torch.Tensor:
        try:
            return self.processor.region_cells(sample.regions, size)
        except ValueError as error:
            raise ValueError(f"sample {sample.sample_id}: {error}") from error

    def _token_index(self, rows: list[_Row]) -> torch.Tensor:
        parts, start = [], 0
        for row in rows:
            count = sum(row.units)
            parts.append(start + self.processor.token_index(count, row.cells))
            start += count * self.processor.tokens_per_tile
        return torch.cat(parts)

    def _frames(self, samples: list[Sample], rows: list[_Row]) -> dict:
        """Which [SEG] and which frame each mask belongs to, and which frames the language model reads."""
        seg_of_mask, image_of_mask, read, first, seg = [], [], [], [], 0
        start = 0
        for sample, row in zip(samples, rows, strict=True):
            first.append(start)
            read += [start + frame for frame in row.read]
            for _ in range(_answer_of(sample).count(SEG_TOKEN)):
                for frame in range(len(row.mask_pixels)):
                    seg_of_mask.append(seg)
                    image_of_mask.append(start + frame)
                seg += 1
            start += len(row.mask_pixels)
        return {
            "seg_of_mask": torch.tensor(seg_of_mask, dtype=torch.long),
            "image_of_mask": torch.tensor(image_of_mask, dtype=torch.long),
            "read_images": torch.tensor(read),
            "image_of_row": torch.tensor(first),
            "images_per_row": torch.tensor([len(row.read) for row in rows]),
        }

    def _targets(self, samples: list[Sample]) -> dict:
        masks, presence, boxes, groups = [], [], [], []
        for sample in samples:
            order = _tokens_in_order(_answer_of(sample))
            regions = _asked_for(sample, len(order))
            if len(order) != len(regions):
                raise RegionCountError(
                    f"sample {sample.sample_id}: {len(order)} [SEG]/[BOX] tokens in the answer for "
                    f"{len(regions)} regions; write one token per region"
                )
            volume = _is_volume(sample)
            size = sample.images[0].shape[1:3] if volume else sample.images[0].shape[:2]
            frame = self.processor.frame(size)
            for token, region in zip(order, regions, strict=True):
                if token == SEG_TOKEN:
                    there = region.presence is None or region.presence >= 0.5
                    if region.mask is None and there:
                        raise RegionCountError(f"sample {sample.sample_id}: [SEG] for {region.phrase!r} has no mask")
                    planes = [region.mask]
                    if volume:
                        planes = [None] * len(sample.images[0]) if region.mask is None else list(region.mask)
                    masks += [self._mask(plane, frame) for plane in planes]
                    presence.append(float(there and bool(region.mask.any())))
                else:
                    if region.box_xyxy_px is None:
                        raise RegionCountError(f"sample {sample.sample_id}: [BOX] for {region.phrase!r} has no box")
                    boxes.append(np.asarray(region.box_xyxy_px, dtype=np.float32) / frame.box_unit_px)
                    groups.append(_group(groups, sample.sample_id, region.phrase))
        size = self.mask_target_size
        return {
            "masks": torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, size, size),
            "presence": torch.tensor(presence),
            "boxes_xyxy": torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
            "box_groups": torch.tensor([number for number, _ in groups], dtype=torch.long),
        }

    def _mask(self, mask: np.ndarray | None, frame) -> np.ndarray:
        side = self.mask_target_size
        target = np.zeros((side, side), dtype=np.float32)
        if mask is None:
            return target
        if mask.shape != frame.image_hw:
            raise ValueError(f"a mask of {mask.shape} does not fit its image of {frame.image_hw}")
        rows, columns = (max(1, round(length * side / frame.side)) for length in frame.content_hw)
        # Box filter when shrinking: thin structures fade instead of vanishing, the loss accepts soft targets.
        picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((columns, rows), Image.Resampling.BOX)
        target[:rows, :columns] = np.asarray(picture, dtype=np.float32) >= 127.5
        return target


def _is_volume(sample: Sample) -> bool:
    return sample.labels.get("task") == "volume" and sample.images[0].ndim == 3


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def _answer_of(sample: Sample) -> str:
    return "".join(text for role, text in sample.conversation if role == "assistant")


def _asked_for(sample: Sample, tokens: int) -> list:
    """Regions the answer points at: not those given with the question, nor absent ones the answer only denies."""
    if sample.labels.get("task") == "region":
        return []
    if len(sample.regions) == tokens:
        return list(sample.regions)
    return [region for region in sample.regions if region.presence is None or region.presence >= 0.5]


def _group(groups: list[tuple[int, tuple]], sample_id: str, phrase: str) -> tuple[int, tuple]:
    """Number and key of the phrase a box belongs to: boxes of one phrase that follow each other share it."""
    key = (sample_id, phrase)
    if groups and groups[-1][1] == key:
        return groups[-1]
    return (groups[-1][0] + 1 if groups else 0), key


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

"""Samples to the batch a grounded model trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from unimed.data.canonical import POINTERS, answer_of, is_volume, pointed_regions, without_markers
from unimed.io.windows import known_site, to_uint8
from unimed.registry import COLLATORS, formerly
from unimed.structures import Sample, Task
from unimed.tokens import SEG_TOKEN


class RegionCountError(ValueError):
    """An answer whose [SEG] and [BOX] tokens are not matched by masks and boxes, one to one."""


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
        samples = [self.write(sample) for sample in samples]
        assembly = self.processor.assembly(share_images=False)
        examples = [self._add(assembly, sample) for sample in samples]
        batch = assembly.batch(pack=self.pack)
        order = batch.pop("order", range(len(samples)))
        samples, examples = [samples[i] for i in order], [examples[i] for i in order]
        if any(is_volume(sample) or not sample.teaches_words for sample in samples):
            batch["layout"] = self._with_frames(batch["layout"], samples, examples)
        return {
            **batch,
            "sample_ids": [sample.sample_id for sample in samples],
            "tasks": [sample.task for sample in samples],
            "captions": [_caption(sample) for sample in samples],
            **self._targets(samples),
        }

    def write(self, sample: Sample) -> Sample:
        """The sample in the words of the model's dialect; wordings are drawn by the global `random`."""
        return self.processor.write(sample)

    def _add(self, assembly, sample: Sample):
        frames, read = list(sample.images), None
        if is_volume(sample):
            frames = list(volume_to_uint8(sample))
            if self.language_frames is not None and len(frames) > self.language_frames:
                read = np.linspace(0, len(frames) - 1, self.language_frames).round().astype(int).tolist()
        elif len(frames) < 2:
            frames = frames[0] if frames else None
        try:
            example = assembly.add(frames, sample.conversation, sample.written.given, read)
        except ValueError as error:
            raise type(error)(f"sample {sample.sample_id}: {error}") from error
        if not sample.teaches_words and example.labels is not None:
            example.labels = [-100] * len(example.labels)
        return example

    def _with_frames(self, layout, samples: list[Sample], examples: list):
        """Which [SEG] and which frame each mask belongs to."""
        seg_of_mask, image_of_mask, seg = [], [], 0
        for start, sample, example in zip(layout.image_of_sample.tolist(), samples, examples, strict=True):
            # A [SEG] speaks of all slices of a volume, and of the first of several images; an answer whose words are
            # not learnt shows what is not there, and asks for no mask.
            frames = len(example.images) if is_volume(sample) else int(sample.teaches_words)
            for _ in range(answer_of(sample).count(SEG_TOKEN)):
                seg_of_mask += [seg] * frames
                image_of_mask += range(start, start + frames)
                seg += 1
        return replace(layout, seg_of_mask=torch.tensor(seg_of_mask, dtype=torch.long),
                       image_of_mask=torch.tensor(image_of_mask, dtype=torch.long))  # fmt: skip

    def _targets(self, samples: list[Sample]) -> dict:
        masks, presence, boxes, groups = [], [], [], []
        for sample in samples:
            order, regions = POINTERS.findall(answer_of(sample)), pointed_regions(sample)
            if len(order) != len(regions):
                raise RegionCountError(
                    f"sample {sample.sample_id}: {len(order)} [SEG]/[BOX] tokens in the answer for "
                    f"{len(regions)} regions; write one token per region"
                )
            if not order:
                continue
            volume = is_volume(sample)
            size = sample.images[0].shape[1:3] if volume else sample.images[0].shape[:2]
            frame = self.processor.frame(size)
            for token, region in zip(order, regions, strict=True):
                if token == SEG_TOKEN:
                    there = region.presence is None or region.presence >= 0.5
                    if there and (region.mask is None or not sample.teaches_words):
                        raise RegionCountError(f"sample {sample.sample_id}: [SEG] for {region.phrase!r} has no mask")
                    planes = [region.mask]
                    if volume:
                        planes = [None] * len(sample.images[0]) if region.mask is None else list(region.mask)
                    if sample.teaches_words:
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
        image = Image.fromarray(mask.astype(np.uint8) * 255).resize((columns, rows), Image.Resampling.BOX)
        target[:rows, :columns] = np.asarray(image, dtype=np.float32) >= 127.5
        return target


def _caption(sample: Sample) -> str | None:
    """The words that belong to the one image of a sample, where it is a pair of image and caption."""
    if sample.task is not Task.CAPTION or len(sample.images) != 1:
        return None
    return without_markers(answer_of(sample)) or None


def volume_to_uint8(sample: Sample) -> np.ndarray:
    """The volume of a sample as 0..255, one window for all slices, chosen by what the sample says of itself.

    Raises:
        ValueError: NaN or Inf; the sample is named.
    """
    site = known_site(sample.labels.get("site") or "", sample.modality)
    try:
        return to_uint8(sample.images[0], sample.geometry, modality=sample.modality, site=site)
    except ValueError as error:
        raise ValueError(f"sample {sample.sample_id}: {error}") from error


def _group(groups: list[tuple[int, tuple]], sample_id: str, phrase: str) -> tuple[int, tuple]:
    """Number and key of the phrase a box belongs to: boxes of one phrase that follow each other share it."""
    key = (sample_id, phrase)
    if groups and groups[-1][1] == key:
        return groups[-1]
    return (groups[-1][0] + 1 if groups else 0), key


formerly("UniMedCollator", COLLATORS, type="GroundedCollator")

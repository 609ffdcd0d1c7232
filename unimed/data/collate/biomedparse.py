"""Samples to the batch that a text-prompted segmenter trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from unimed.io.images import load as load_image
from unimed.io.slices import choose_axis, with_neighbors
from unimed.io.windows import to_uint8
from unimed.registry import COLLATORS
from unimed.structures import Sample


class NoPromptError(ValueError):
    """A sample without a region that could be asked for."""


@COLLATORS.register_module()
class ParseCollator:
    """Images, prompts and label maps; every region of a sample is one prompt, and samples may differ in how many.

    A volume takes part with one slice, see `slice_of_volume`.

    Args:
        processor: a `ParseProcessor`.
        max_prompts: most regions of a sample that are used, the first ones; None for all.

    Raises:
        NoPromptError: see there. ValueError: a region that is there without a mask, or a mask of another size.
    """

    def __init__(self, processor=None, max_prompts: int | None = None):
        self.processor, self.max_prompts = processor, max_prompts

    def __call__(self, samples: list[Sample]) -> dict:
        images, prompts, labels, counts = [], [], [], []
        for sample in map(slice_of_volume, samples):
            regions = [region for region in sample.regions if region.mask is not None or region.presence is not None]
            regions = regions[: self.max_prompts]
            if not regions:
                raise NoPromptError(f"sample {sample.sample_id}: no region with a mask or a presence to ask for")
            image = load_image(sample.images[0], modality=sample.modality, name=f"sample {sample.sample_id}")
            images.append(self.processor.image(image.pixels))
            counts.append(len(regions))
            for region in regions:
                prompts.append(region.phrase)
                labels.append(self.processor.labels(self._labels(sample, region)))
        return {
            "pixel_values": torch.stack(images),
            **self.processor.prompts(prompts),
            "num_prompts": torch.tensor(counts),
            "labels": torch.stack(labels),
            "sample_ids": [sample.sample_id for sample in samples],
        }

    def _labels(self, sample: Sample, region) -> np.ndarray:
        """The region's mask, with the numbers of its instances where the sample has them; zeros where it is absent."""
        size = sample.images[0].shape[:2]
        absent = region.presence is not None and region.presence < 0.5
        if region.mask is None and not absent:
            raise ValueError(f"sample {sample.sample_id}: {region.phrase!r} is there but has no mask")
        if absent or region.mask is None:
            return np.zeros(size, bool)
        if region.mask.shape != size:
            raise ValueError(f"sample {sample.sample_id}: mask {region.mask.shape} for an image of {size}")
        instances = sample.labels.get("instances")
        return region.mask if instances is None else np.where(region.mask, instances, 0)


def slice_of_volume(sample: Sample) -> Sample:
    """A volume DxHxW as its slice that shows most of the targets, with both neighbours as channels; others as they are.

    At the ends the one existing neighbour stands for both. One window brings the grey values to 0..255.
    """
    image = sample.images[0]
    if image.ndim != 3 or image.shape[-1] == 3:
        return sample
    axis = choose_axis(image.shape)
    planes = np.moveaxis(image, axis, 0)
    shown = np.zeros(len(planes), np.int64)
    for region in sample.regions:
        if region.mask is not None:
            shown += np.moveaxis(region.mask, axis, 0).sum((1, 2))
    z = int(shown.argmax())
    gray = torch.from_numpy(np.ascontiguousarray(to_uint8(planes)))
    channels = with_neighbors(gray, 0, z, z + 1, len(planes))[0].permute(1, 2, 0).numpy()

    def cut(mask):
        return None if mask is None else np.ascontiguousarray(np.moveaxis(mask, axis, 0)[z])

    regions = []
    for region in sample.regions:
        mask = cut(region.mask)
        there = mask is not None and bool(mask.any())
        regions.append(replace(region, mask=mask if there else None, presence=float(there)))
    labels = dict(sample.labels)
    if "instances" in labels:
        labels["instances"] = cut(labels["instances"])
    return replace(sample, images=(channels,), regions=tuple(regions), labels=labels)

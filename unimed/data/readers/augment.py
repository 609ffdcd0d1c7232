"""Augmentation of images with regions, as BiomedParse v2 was trained, without swapping left and right by accident."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np

from unimed.registry import DATASETS, renames
from unimed.structures import Sample

_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
#: Chances and widths of the published recipe.
GATE, CROP, NOISE, SPECKS, NEIGHBORS = 0.5, 0.5, 0.5, 0.5, 0.5
SHIFT, NOISE_STD, SPECK_SHARE, ZOOM, MOVE = 25.5, 25.0, (0.02, 0.1), (0.9, 1.1), 0.1


def other_side(text: str) -> str:
    """The text with left and right exchanged: "left kidney" becomes "right kidney"."""
    return re.sub(r"\b(left|right)\b", lambda m: _SIDES.get(m[0], m[0]), text, flags=re.IGNORECASE)


@DATASETS.register_module()
@renames(swap_neighbours="swap_neighbors")
class AugmentedDataset:
    """Another dataset, changed at random: turned, mirrored, cropped, brighter or darker, noisy, speckled.

    Everything together happens to every second sample. The channels before and after a slice are exchanged in every
    second one, independently. What is drawn depends on the engine's seed, the index and the epoch.

    Args:
        dataset: config of the dataset that is augmented; its images are uint8.
        swap_neighbors: for slices with their neighbours as channels.
        zoom, move: range of the window's size, and how far its center moves, as fractions of the image.
        specks: fraction of pixels that become black or white.
        variants: 0, or the number of epochs after which the same changes come again, so that features of a frozen
            encoder can be kept.
        keep_regions: a sample of which a region would leave the image stays as it is.
        compat: None: a mirrored picture gets its prompts mirrored too ("left kidney" is then the right one), and noise
            goes both ways. "reference": prompts stay, and negative noise wraps around to bright values.
    """

    def __init__(
        self,
        dataset: dict,
        swap_neighbors: bool = False,
        compat: str | None = None,
        zoom: tuple[float, float] = ZOOM,
        move: float = MOVE,
        specks: tuple[float, float] = SPECK_SHARE,
        variants: int = 0,
        keep_regions: bool = False,
    ):
        if compat not in (None, "reference"):
            raise ValueError(f"compat {compat!r} is unknown; use None or 'reference'")
        self.dataset = DATASETS.build(dataset)
        self.swap_neighbors, self.compat = swap_neighbors, compat
        self.zoom, self.move, self.specks = tuple(zoom), move, tuple(specks)
        self.variants, self.keep_regions, self.epoch = variants, keep_regions, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Passed on to the dataset."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample:
        draw = random.Random(f"{index} {self.epoch % self.variants}") if self.variants else random
        how = {"zoom": self.zoom, "move": self.move, "specks": self.specks}
        sample = self.dataset[index]
        changed = augment(sample, draw, self.swap_neighbors, self.compat, **how)
        shown = [[r.mask is not None and bool(r.mask.any()) for r in one.regions] for one in (sample, changed)]
        return sample if self.keep_regions and shown[0] != shown[1] else changed


def augment(
    sample: Sample, draw=random, swap_neighbors: bool = False, compat: str | None = None,
    zoom: tuple[float, float] = ZOOM, move: float = MOVE, specks: tuple[float, float] = SPECK_SHARE,
) -> Sample:  # fmt: skip
    """One sample by the published recipe; see `AugmentedDataset`.

    Args:
        draw: a `random.Random`, or the module.

    Raises:
        ValueError: images that are not uint8 HxW or HxWx3.
    """
    image = sample.images[0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"sample {sample.sample_id}: augmentation takes uint8 HxW or HxWx3, got {image.dtype}")
    maps = [region.mask for region in sample.regions]
    instances = sample.labels.get("instances")
    mirrored = False
    if draw.random() < GATE:
        turns, flip = draw.randrange(4), draw.choice(((0,), (1,), (0, 1)))
        mirrored = len(flip) == 1

        def place(values):
            return None if values is None else np.flip(np.rot90(values, turns, (0, 1)), flip)

        if draw.random() < CROP:
            size, dy, dx = draw.uniform(*zoom), draw.uniform(-move, move), draw.uniform(-move, move)
            rotated = place

            def place(values):
                return None if values is None else zoom_in(rotated(values), size, dy, dx)

        image, instances, maps = place(image), place(instances), [place(mask) for mask in maps]
        image = _intensities(image, draw, compat, specks)
    if swap_neighbors and image.ndim == 3 and draw.random() < NEIGHBORS:
        image = image[..., [0, 2, 1]]
    regions, conversation, intent = [], sample.conversation, sample.intent
    for region, mask in zip(sample.regions, maps, strict=True):
        change = {"mask": None if mask is None else np.ascontiguousarray(mask), "box_xyxy_px": None}
        if mirrored and compat != "reference":
            change |= {"phrase": other_side(region.phrase), "phrase_span": None}
        regions.append(replace(region, **change))
    if mirrored and compat != "reference":
        conversation = tuple((role, other_side(text)) for role, text in conversation)
        if intent is not None:
            sides = {name: other_side(getattr(intent, name)) for name in ("subject", "answer_subject")}
            intent = replace(intent, **sides)
    labels = dict(sample.labels)
    if instances is not None:
        labels["instances"] = np.ascontiguousarray(instances)
    return replace(
        sample,
        images=(np.ascontiguousarray(image),),
        regions=tuple(regions),
        labels=labels,
        conversation=conversation,
        intent=intent,
    )


def zoom_in(values: np.ndarray, zoom: float, dy: float, dx: float) -> np.ndarray:
    """Cut a window of `zoom` times the size around a moved centre and bring it to the old size.

    Args:
        values: HxW or HxWx3; uint8 images are interpolated linearly, everything else by the nearest neighbour.
        zoom: below 1 enlarges. dy, dx: shift of the centre as a share of height and width; zeros lie outside.
    """
    from scipy import ndimage

    height, width = values.shape[:2]
    # Pixel centres: output row r looks at input row (r + 0.5) * zoom + start - 0.5.
    start = (0.5 + dy) * height - zoom * height / 2, (0.5 + dx) * width - zoom * width / 2
    offset = [0.5 * zoom + begin - 0.5 for begin in start]
    image = values.dtype == np.uint8 and values.ndim in (2, 3)
    order = 1 if image else 0
    planes = values[..., None] if values.ndim == 2 else values
    result = np.stack(
        [
            ndimage.affine_transform(
                planes[..., c].astype(np.float32 if image else np.int32),
                [zoom, zoom],
                offset,
                order=order,
                mode="constant",
                cval=0,
            )
            for c in range(planes.shape[-1])
        ],
        axis=-1,
    )
    result = result.round().clip(0, 255) if image else result
    return result.astype(values.dtype).reshape(values.shape)


def _intensities(image: np.ndarray, draw, compat, specks=SPECK_SHARE) -> np.ndarray:
    """Shift, Gaussian noise, salt and pepper."""
    random_numbers = np.random.Generator(np.random.PCG64(draw.getrandbits(64)))
    changed = image.astype(np.float32) + draw.uniform(-SHIFT, SHIFT)
    if draw.random() < NOISE:
        noise = random_numbers.normal(0, draw.uniform(0, NOISE_STD), image.shape)
        changed += noise.astype(np.int64).astype(np.uint8) if compat == "reference" else noise
    if draw.random() < SPECKS:
        fraction, where = draw.uniform(*specks), random_numbers.random(image.shape[:2])
        changed[where < fraction / 2] = 0
        changed[where > 1 - fraction / 2] = 255
    return changed.clip(0, 255).astype(np.uint8)

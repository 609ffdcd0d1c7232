"""Augmentation: masks go with their image, sides go with mirrors, numbers stay in range."""

import random

import numpy as np
import pytest

from unimed.data.readers import augment as module
from unimed.data.readers.augment import AugmentedDataset, augment, other_side, zoom_in
from unimed.geometry import Geometry
from unimed.registry import DATASETS
from unimed.structures import Region, Sample


def sample(phrase="left kidney", size=(40, 30), channels=True):
    mask = np.zeros(size, bool)
    mask[5:15, 3:12] = True
    image = np.where(mask, 200, 20).astype(np.uint8)
    if channels:
        image = np.stack([image, np.full_like(image, 50), np.full_like(image, 90)], -1)
    return Sample(
        images=(image,),
        geometry=Geometry.pixels(),
        sample_id="s",
        conversation=(("user", f"Please segment {phrase}."), ("assistant", f"<p> {phrase} </p> [SEG].")),
        regions=(Region(phrase, mask=mask, presence=1.0), Region("liver", presence=0.0)),
        labels={"instances": mask.astype(np.int32) * 7},
    )


@pytest.fixture
def quiet(monkeypatch):
    """Geometry alone."""
    monkeypatch.setattr(module, "_intensities", lambda image, *_: image)


def test_masks_follow_their_image(quiet):
    moved = 0
    for seed in range(40):
        changed = augment(sample(), random.Random(seed))
        mask, image = changed.regions[0].mask, changed.images[0]
        assert mask.shape == image.shape[:2] and mask.dtype == bool and image.dtype == np.uint8
        bright = image[..., 0] > 110
        assert (bright ^ mask).sum() <= 0.12 * mask.sum()
        assert np.array_equal(changed.labels["instances"] == 7, mask)
        assert changed.regions[1].mask is None and changed.regions[1].presence == 0.0
        moved += not np.array_equal(image, sample().images[0])
    assert 12 <= moved <= 28  # every second one


def test_mirrored_pictures_have_mirrored_prompts(quiet):
    sides = {"left kidney": 0, "right kidney": 0}
    for seed in range(60):
        original, changed = sample(size=(40, 40)), augment(sample(size=(40, 40)), random.Random(seed))
        phrase = changed.regions[0].phrase
        sides[phrase] += 1
        assert phrase in changed.conversation[0][1] and phrase in changed.conversation[1][1]
        # A mark that lies off the diagonal tells a mirror from a turn.
        turned = [np.rot90(original.regions[0].mask, k) for k in range(4)]
        if changed.regions[0].mask.sum() == original.regions[0].mask.sum():
            was_turned = any(np.array_equal(changed.regions[0].mask, mask) for mask in turned)
            assert was_turned == (phrase == "left kidney")
        kept = augment(sample(size=(40, 40)), random.Random(seed), compat="reference")
        assert kept.regions[0].phrase == "left kidney"
    assert min(sides.values()) > 5


def test_other_side():
    assert other_side("Left kidney and right lung") == "Right kidney and left lung"
    assert other_side("LEFT cleft, bright leftover") == "RIGHT cleft, bright leftover"


def test_zoom_keeps_the_centre_and_pads_with_zeros():
    image = np.zeros((41, 41), np.uint8)
    image[20, 20] = 255
    assert zoom_in(image, 1.0, 0, 0)[20, 20] == 255
    assert zoom_in(image, 0.5, 0, 0)[20, 20] == 255
    ones = zoom_in(np.ones((20, 20), bool), 2.0, 0, 0)
    assert ones.dtype == bool and 90 <= ones.sum() <= 110 and not ones[0].any()
    assert np.array_equal(zoom_in(np.full((9, 9), 300, np.int32), 1.0, 0, 0), np.full((9, 9), 300))


def test_noise_is_symmetric_unless_the_published_one_is_asked_for():
    flat = np.full((64, 64), 128, np.uint8)
    means = {}
    for compat in (None, "reference"):
        values = [module._intensities(flat, random.Random(seed), compat).mean() for seed in range(40)]
        means[compat] = float(np.mean(values))
    assert abs(means[None] - 128) < 8
    assert means["reference"] > means[None] + 10


def test_neighbours_are_exchanged_in_every_second_sample(quiet):
    exchanged = sum(
        bool((augment(sample(), random.Random(seed), swap_neighbors=True).images[0][..., 1] == 90).any())
        for seed in range(60)
    )
    assert 18 <= exchanged <= 42


class _Counting:
    epoch = None

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return sample()

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_the_wrapper_draws_from_the_global_generator_and_passes_the_epoch_on():
    DATASETS.register_module(name="_Counting", module=_Counting, force=True)
    dataset = AugmentedDataset(dict(type="_Counting"))
    assert len(dataset) == 3
    dataset.set_epoch(4)
    assert dataset.dataset.epoch == 4
    random.seed(1)
    first = dataset[0].images[0]
    random.seed(1)
    assert np.array_equal(first, dataset[0].images[0])
    with pytest.raises(ValueError, match="compat"):
        AugmentedDataset(dict(type="_Counting"), compat="other")
    broken = sample()
    object.__setattr__(broken, "images", (broken.images[0].astype(np.float32),))
    with pytest.raises(ValueError, match="uint8"):
        augment(broken)


def test_few_variants_come_again_and_others_do_not():
    class One:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return sample()

    DATASETS.register_module("OneForVariants", module=One, force=True)
    data = AugmentedDataset(dict(type="OneForVariants"), variants=3, zoom=(0.5, 0.6), move=0.0, specks=(0.0, 0.0))

    def images(epoch):
        data.set_epoch(epoch)
        return [data[index].images[0] for index in range(3)]

    first = images(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, images(3), strict=True))
    later = [image for epoch in (1, 2) for image in images(epoch)]
    assert not all(np.array_equal(a, b) for a, b in zip(first + first, later, strict=True))
    # A window of twice the size shows everything smaller.
    sizes = {
        augment(sample(), random.Random(seed), zoom=(2.0, 2.0), move=0.0).regions[0].mask.sum() for seed in range(20)
    }
    assert min(sizes) < 0.5 * max(sizes) and max(sizes) == sample().regions[0].mask.sum()

    # In a corner everything may move out of the window, unless that is refused.
    def shown(**options):
        moving = dict(variants=40, zoom=(0.5, 0.5), move=0.4)
        data = AugmentedDataset(dict(type="OneForVariants"), **moving, **options)
        for epoch in range(40):
            data.set_epoch(epoch)
            yield bool(data[0].regions[0].mask.any())

    assert not all(shown()) and all(shown(keep_regions=True))

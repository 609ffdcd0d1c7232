"""Looking again: crops around the model's own regions, when that ends, and that masks land where they belong."""

import numpy as np
import pytest

from unimed.data.readers.hard_prompts import cropped
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.models.grounded.second_look import look_again
from unimed.structures import Region, Sample


class Coarse:
    """Finds bright pixels as a model does that sees every image on a grid of `cells` x `cells`."""

    def __init__(self, cells=8, blind_to_crops=False):
        self.cells, self.asked, self.blind = cells, [], blind_to_crops

    def predict(self, image, text, **options):
        return self.predict_batch([getattr(image, "rgb", image)], [text])[0]

    def predict_batch(self, images, texts, **options):
        answers = []
        for image, text in zip(images, texts, strict=True):
            self.asked.append((image.shape[:2], text))
            bright = image[..., 0] > 128 if image.ndim == 3 else image > 128
            step = -(-max(bright.shape) // self.cells)
            mask = np.zeros_like(bright)
            for y in range(0, bright.shape[0], step):
                for x in range(0, bright.shape[1], step):
                    mask[y : y + step, x : x + step] = bright[y : y + step, x : x + step].any()
            if self.blind and len(self.asked) > 1:
                mask[:] = False
            answers.append(Prediction("a lesion", (Region("lesion", mask=mask, presence=0.9, confidence=0.5),)))
        return answers


def picture(side=128):
    image = np.zeros((side, side, 3), np.uint8)
    image[70:77, 40:46] = 255
    return image, image[..., 0] > 0


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_a_small_thing_is_seen_better_each_round():
    image, truth = picture()
    quality = [iou(look_again(Coarse(), image, "x", rounds=n).regions[0].mask, truth) for n in (1, 2, 3)]
    assert quality[0] < quality[1] <= quality[2] and quality[2] > 0.5, quality
    model, looks = Coarse(cells=32), []
    found = look_again(model, image, "x", rounds=9, looks=looks)
    assert looks[-1].ended == "looks agree" and len(looks) < 8, "it ends by itself"
    assert model.asked[1][1] == "Segment the lesion." and "second_look" in found.timing_s
    assert found.regions[0].box_xyxy_px == (40.0, 70.0, 46.0, 77.0) and found.regions[0].phrase == "lesion"


def test_nothing_there_ends_at_once():
    model, looks = Coarse(), []
    found = look_again(model, np.zeros((64, 64, 3), np.uint8), "x", rounds=5, looks=looks)
    assert len(model.asked) == 1 and not looks and not found.regions[0].mask.any()


def test_what_fills_the_image_is_not_looked_at_again():
    model, looks = Coarse(), []
    look_again(model, np.full((64, 64, 3), 255, np.uint8), "x", rounds=5, looks=looks)
    assert len(model.asked) == 1 and [look.ended for look in looks] == ["the crop would be the whole image"]


def test_a_look_that_loses_the_thing_keeps_the_first():
    image, _ = picture()
    model, looks = Coarse(blind_to_crops=True), []
    found = look_again(model, image, "x", rounds=5, looks=looks)
    assert len(model.asked) == 2 and looks[0].ended == "nothing was found in the crop"
    assert (found.regions[0].mask == look_again(Coarse(), image, "x", rounds=1).regions[0].mask).all()


def test_choices_that_cannot_be_meant():
    for wrong in (dict(rounds=0), dict(zoom=1.0), dict(question="Segment it.")):
        with pytest.raises(ValueError, match="look_again needs"):
            look_again(Coarse(), picture()[0], "x", **wrong)


def test_training_shows_crops_that_hold_the_thing():
    image, truth = picture()
    sample = Sample(
        (image,), Geometry.pixels(), "s", conversation=(("user", "Segment the lesion."), ("assistant", "[SEG]")),
        regions=(Region("lesion", mask=truth, presence=1.0),), labels={"task": "referring"},
    )  # fmt: skip
    for zoom in (1.5, 3.0, 100.0):
        one = cropped(sample, zoom)
        assert one.regions[0].mask.sum() == truth.sum() and one.regions[0].mask.shape == one.images[0].shape[:2]
        assert (one.images[0][one.regions[0].mask] == 255).all()
        assert max(one.images[0].shape[:2]) == min(128, round(zoom * 7))
    absent = Sample(
        (image,), Geometry.pixels(), "a", regions=(Region("cyst", presence=0.0),), labels={"task": "absent"}
    )
    with pytest.raises(ValueError, match="a: there is no mask"):
        cropped(absent, 2.0)

"""Pictures by prompts and recognition."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unimed.data.wordings.biomedparse_targets import TargetError, presence_distributions
from unimed.inference.recognition import as_prediction, hierarchy, recognize, segment_image
from unimed.inference.volume_text import PromptError
from unimed.metrics.recognition import mask_statistics, presence_p_value
from unimed.models.boltzformer.processing import ParseProcessor, brightness
from unimed.models.starting.boltzformer import build_small

sys.path.insert(0, str(Path(__file__).parent))
from segmenters import GreySegmenter  # noqa: E402


def picture():
    image = np.zeros((40, 64), np.uint8)
    image[4:20, 8:32], image[20:36, 36:60] = 100, 200
    return image


def test_masks_fit_the_picture():
    found = segment_image(GreySegmenter(), picture(), ["100", "200", "50"])
    assert [one.mask.shape for one in found] == [(40, 64)] * 3
    for one, grey in zip(found, (100, 200), strict=False):
        assert (one.mask & (picture() == grey)).sum() > 0.9 * (picture() == grey).sum()
    assert not found[2].mask.any() and found[2].presence == 0
    prediction = as_prediction(found)
    assert (
        prediction.regions[0].box_xyxy_px[:2] == pytest.approx((8, 4), abs=2) and prediction.regions[2].mask.sum() == 0
    )


def test_overlaps_are_shared_out():
    prompts = ["100", "90-110", "90-210"]
    kept = segment_image(GreySegmenter(), picture(), prompts)
    assert np.array_equal(kept[0].mask, kept[1].mask)
    for overlap in ("combine", "nms"):
        shared = segment_image(GreySegmenter(), picture(), prompts, overlap=overlap)
        assert (np.stack([one.mask for one in shared]).sum(0) <= 1).all() and any(one.mask.any() for one in shared)


def test_real_model_same_answer_alone_and_together():
    model = build_small(["liver", "spleen in CT"], image_size=64, channels="rgb")
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    together = segment_image(model, image, ["liver", "spleen in CT"], threshold=0)
    alone = segment_image(model, image, ["spleen in CT"], threshold=0)[0]
    assert np.abs(together[1].probability - alone.probability).max() < 1e-4
    regions = model.predict(image, "liver", presence_threshold=0).regions
    assert regions[0].mask.shape == (50, 70) and 0 < regions[0].presence < 1


class Judge(GreySegmenter):
    """As v1: finds grey values of known targets and says nothing of existence."""

    GREYS = {"left lung": 100, "right lung": 200}

    def encode_prompts(self, prompts):
        self.prompts = prompts
        names = [prompt.split(" in ")[0] for prompt in prompts]
        return super().encode_prompts([str(self.GREYS.get(name, 50)) for name in names])

    def segment_slices(self, *args, **options):
        output = super().segment_slices(*args, **options)
        output.existence = torch.full_like(output.existence, float("nan"))
        return output


def test_recognition_by_existence():
    class Knows(GreySegmenter):
        def encode_prompts(self, prompts):
            return super().encode_prompts([str({0: 100, 1: 200}.get(i, 50)) for i in range(len(prompts))])

    found = recognize(Knows(), picture(), "MRI", "abdomen")
    assert {one.phrase for one in found} == {"aorta", "postcava"}
    assert found[0].prompt.endswith("in abdomen MRI")
    tree = hierarchy(found)
    assert set(tree["organ"]["below"]["vessel"]["below"]) == {"aorta", "postcava"} and tree["organ"]["score"] == 1
    with pytest.raises(TargetError, match="no list of targets"):
        recognize(Knows(), picture(), "MRI", "knee")


def test_recognition_by_the_ks_test():
    model = Judge()
    everything = recognize(model, picture(), "X-Ray-Chest", p_value=None)
    assert model.prompts == ["left lung in chest X-Ray", "right lung in chest X-Ray"]
    by_target = {one.phrase: one for one in everything}
    for target, one in by_target.items():
        rgb = np.repeat(picture()[..., None], 3, axis=2)
        shapes = presence_distributions("X-Ray-Chest", target)
        assert one.presence is None and one.p_value == presence_p_value(mask_statistics(one.probability, rgb), shapes)
    usual = {target for target, one in by_target.items() if one.p_value >= 0.05}
    assert {one.phrase for one in recognize(model, picture(), "X-Ray-Chest")} == usual != set(by_target)


def test_pictures_are_padded_and_grey_for_models_of_slices():
    colour = np.zeros((20, 40, 3), np.uint8)
    colour[..., 1] = 100
    config = SimpleNamespace(image_size=40, channels="slices", model_type="x")
    seen = ParseProcessor.of(config).image(brightness(colour))
    assert seen.shape == (3, 40, 40) and seen[:, 10:30].unique().tolist() == [59] and seen[:, :10].max() == 0
    assert ParseProcessor.of(config).image(colour)[1, 10:30].unique().tolist() == [100]


def test_faults():
    with pytest.raises(PromptError):
        segment_image(GreySegmenter(), picture(), [])
    with pytest.raises(ValueError, match="overlap must be one of"):
        segment_image(GreySegmenter(), picture(), ["100"], overlap="most")
    with pytest.raises(ValueError, match="window it first"):
        segment_image(GreySegmenter(), picture().astype(np.float32), ["100"])

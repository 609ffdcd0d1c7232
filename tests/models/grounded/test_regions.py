import numpy as np
import pytest
import torch
from sam2_models import say, tiny_sam2_model

from unimed.models.grounded.processing import PromptError
from unimed.models.grounded.regions import region_cells, region_masks, token_index
from unimed.structures import Region

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (60, 90, 3), dtype=np.uint8)


def blob(rows, columns):
    mask = np.zeros((60, 90), dtype=bool)
    mask[rows, columns] = True
    return mask


def test_masks_boxes_and_regions_mean_the_same_place():
    mask = blob(slice(10, 30), slice(20, 50))
    boxes = region_masks(
        [mask, (20, 10, 50, 30), Region("x", mask=mask), Region("y", box_xyxy_px=(20, 10, 50, 30))], (60, 90)
    )
    assert boxes.shape == (4, 60, 90) and (boxes == mask).all()
    assert region_masks([(-5, -5, 0.2, 0.2)], (60, 90)).sum() == 1


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (np.zeros((60, 90)), "region 1 is empty"),
        (np.ones((30, 90)), r"shape \(30, 90\).*\(60, 90\)"),
        ((5, 5, 5, 9), "no area"),
        ((100, 5, 120, 9), "outside the image of 90 x 60"),
        ((1, 2, 3), "box"),
        (Region("x"), "neither"),
    ],
)
def test_regions_that_do_not_fit_are_named(region, words):
    with pytest.raises(PromptError, match=words):
        region_masks([region], (60, 90))


def test_a_region_between_the_sampled_pixels_still_has_a_token():
    mask = np.zeros((1, 64, 64), dtype=bool)
    mask[0, 33, 35] = True
    cells = region_cells(mask, (4, 4))
    assert cells.sum() == 1 and cells[0, 2, 2]
    index = token_index(20, cells)
    assert index.tolist() == [*range(20), 4 + 10]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["internvl", "llava", "qwen2_5_vl"])
def test_answers_about_regions_are_the_same_alone_and_in_a_batch(kind):
    model = tiny_sam2_model(kind)
    regions = [[blob(slice(0, 30), slice(0, 40))], None, [(40, 20, 90, 60), (0, 0, 10, 10)], [(0, 0, 90, 60)]]
    images = [IMAGE, IMAGE[:30, :40], IMAGE, IMAGE]
    texts = ["What is region1?", "What?", "Compare region1 and region2 in this picture.", "What is region1?"]
    together = model.predict_batch(images, texts, regions, max_new_tokens=8, batch_size=4)
    for image, text, given, prediction in zip(images, texts, regions, together, strict=True):
        assert model.predict(image, text, regions=given, max_new_tokens=8).text == prediction.text
    # Another region under the same words is another question.
    states = []
    for given in ((0, 0, 30, 30), (60, 30, 90, 60)):
        states.append(model(**model.processor(images=IMAGE, text="What is region1?", regions=[given])).hidden[0, -1])
    assert not torch.allclose(*states, atol=1e-4)


def test_regions_are_refused_before_anything_is_computed():
    model = say(tiny_sam2_model(), "It is [SEG].<|end|>")
    with pytest.raises(PromptError, match="without an image"):
        model.predict(None, "What is region1?", regions=[(0, 0, 5, 5)])
    with pytest.raises(PromptError, match="region 2"):
        model.predict(IMAGE, "What is region1?", regions=[(0, 0, 5, 5), np.ones((3, 3))])
    with pytest.raises(PromptError, match="mask_prompts: region 1"):
        model.predict_forward(image=IMAGE, text="<image>What is region1?", mask_prompts=[np.ones((1, 3, 3))])
    with pytest.raises(ValueError, match="1 lists of regions for 2 texts"):
        model.predict_batch([IMAGE, IMAGE], ["a", "b"], [None])

"""The decoder without SAM: what it reads of the backbone, how a box guides it, and that it learns."""

import numpy as np
import pytest
import torch
from closeness import assert_close
from sam2_models import say, tiny_sam2_model
from small_decoders import lively, small_light

import unimed
from unimed.data.collate.grounded import GroundedCollator
from unimed.geometry import Geometry
from unimed.models.heads.light import LightMaskConfig, LightMaskDecoder, soft_box
from unimed.models.heads.mask import MaskFeatures
from unimed.structures import Region, Sample
from unimed.tasks.grounding import GroundingTask, boxes_around


def samples(count=4, side=48):
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        image, mask = rng.integers(0, 90, (side, side, 3), dtype=np.uint8), np.zeros((side, side), dtype=bool)
        top, left = rng.integers(4, 24, 2)
        mask[top : top + 16, left : left + 16] = True
        image[mask] = 220
        region = Region("nuclei", mask=mask)
        made.append(
            Sample((image,), Geometry.pixels(), sample_id=str(number), regions=(region,), labels={"task": "referring"})
        )
    return made


def test_a_soft_box_is_inside_its_box():
    inside = soft_box(torch.tensor([[0.25, 0.5, 0.75, 1.0]]), (8, 8), softness=1e-3)[0, 0]
    wanted = torch.zeros(8, 8)
    wanted[4:, 2:6] = 1
    torch.testing.assert_close(inside, wanted)


def test_boxes_around_masks():
    masks = torch.zeros(2, 8, 8)
    masks[0, 2:5, 1:7] = 1
    assert boxes_around(masks, 16).tolist() == [[2, 4, 14, 10], [0, 0, 16, 16]]


@torch.no_grad()
def test_image_tokens_of_any_number_are_read_by_their_own_image():
    torch.manual_seed(0)
    decoder = lively(LightMaskDecoder(LightMaskConfig(32, 16, heads=2, token_dim=12))).eval()
    features, prompts = decoder.encode(torch.rand(2, 3, 32, 32)), torch.randn(3, 16)
    index, tokens = torch.tensor([1, 0, 1]), (torch.randn(5, 12), torch.randn(9, 12))
    read = MaskFeatures(features.embedding, features.high_resolution, tokens=tokens)
    logits = decoder.decode(read, index, prompts).logits
    alone = decoder.decode(read.select(1), torch.zeros(1, dtype=torch.long), prompts[:1]).logits
    assert_close(alone[0], logits[0], "second image", 1e-5)
    # The order of tokens is no message; other tokens are.
    turned = MaskFeatures(features.embedding, features.high_resolution, tokens=(tokens[0].flip(0), tokens[1]))
    assert_close(decoder.decode(turned, index, prompts).logits, logits, "turned", 1e-4)
    other = MaskFeatures(features.embedding, features.high_resolution, tokens=tokens[::-1])
    assert not torch.allclose(decoder.decode(other, index, prompts).logits, logits, atol=1e-3)
    # Slices that the language model does not read have none.
    assert decoder.decode(features, index, prompts).logits.shape == logits.shape


@torch.no_grad()
@pytest.mark.parametrize("kind", ["internvl", "qwen2_5_vl"])
def test_a_model_hands_over_the_tokens_of_its_backbone(kind):
    model = tiny_sam2_model(kind, mask_config=small_light())
    assert model.shares_tokens and model.mask_head.config.token_dim == model.backbone.hidden_dim
    seen = []
    model.mask_head.reader.register_forward_hook(lambda module, given, result: seen.append(given[1]))
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 255, size, dtype=np.uint8) for size in ((60, 60, 3), (56, 120, 3))]
    processor = model.processor
    answered = [("user", "Segment it."), ("assistant", "<p> nuclei </p> [SEG]")]
    batch = processor(images=images, text=[answered, answered], return_tensors="pt")
    together = model(**batch)
    assert len(seen) == 2 and seen[0].shape[1] == model.backbone.hidden_dim
    pair = list(seen)
    for row, image in enumerate(images):
        alone = model(**processor(images=image, text=answered, return_tensors="pt"))
        assert seen[-1].shape == pair[row].shape
        assert_close(alone.masks.logits[0], together.masks.logits[row], f"image {row}", 1e-3)


@pytest.mark.parametrize("kind", ["internvl", "qwen2_5_vl"])
def test_predictions_read_the_tokens_too_and_survive_saving(kind, tmp_path):
    model = tiny_sam2_model(kind, mask_config=small_light())
    lively(model.mask_head)
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 255, size, dtype=np.uint8) for size in ((60, 60, 3), (56, 120, 3))]
    found = []
    for one in (model, unimed.load(tmp_path, device="cpu")):
        seen = []
        one.mask_head.reader.register_forward_hook(lambda module, given, result, seen=seen: seen.append(given[1]))
        say(one, "<p> nuclei </p> [SEG]")
        found.append(one.predict_batch(images, ["Segment it."] * 2, max_new_tokens=6))
        assert len(seen) == 2 and all(len(tokens) for tokens in seen)
    for first, again in zip(*found, strict=True):
        assert (first.regions[0].mask == again.regions[0].mask).all()
        assert first.regions[0].confidence == again.regions[0].confidence


def test_it_learns_words_and_boxes_in_a_few_steps():
    torch.manual_seed(0)
    model = tiny_sam2_model("internvl", mask_config=small_light())
    task = GroundingTask(model).train()
    batch = GroundedCollator(model.processor)(samples())
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 4e-3)
    seen = []
    for _ in range(40):
        losses = task(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(float(losses["dice"].detach()))
    assert seen[-1] < 0.6 * seen[0], (seen[0], seen[-1])
    assert model.mask_head.no_words.grad.abs().sum() > 0 and model.mask_head.reader.keys.weight.grad.abs().sum() > 0
    one = samples()[0]
    found = model.segment_boxes(one.images[0], [boxes_around(torch.tensor(one.regions[0].mask)[None], 48)[0].tolist()])
    overlap = (found.regions[0].mask & one.regions[0].mask).sum()
    assert 2 * overlap / (found.regions[0].mask.sum() + one.regions[0].mask.sum()) > 0.7


def test_sizes_that_cannot_be():
    for sizes in (dict(image_size=30), dict(image_size=0), dict(width=20), dict(heads=0), dict(heads=5)):
        with pytest.raises(ValueError, match="multiples of 8"):
            LightMaskConfig(**sizes)

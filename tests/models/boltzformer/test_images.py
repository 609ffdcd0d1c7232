"""Prediction on pictures by both models, the way there and back, and the optional sharpening of masks."""

import numpy as np
import pytest
import torch
from golden_files import SMALL
from PIL import Image

import unimed
from unimed.models.boltzformer import BiomedParseV1Config, BiomedParseV1Model
from unimed.models.boltzformer.processing import ParseProcessor
from unimed.models.boltzformer.tokenizing import train_tokenizer
from unimed.models.boltzformer.upsampling import OutputUpsampler
from unimed.models.starting.boltzformer import build_small

PROMPTS = ["left kidney", "liver", "spleen"]


@pytest.fixture(scope="module")
def model():
    return build_small(PROMPTS, image_size=64)


@pytest.fixture(scope="module")
def v1():
    tokenizer = train_tokenizer(PROMPTS, 540)
    torch.manual_seed(0)
    model = BiomedParseV1Model(BiomedParseV1Config.tiny(text_vocab_size=len(tokenizer), image_size=64)).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 255, (50, 71, 3), dtype=np.uint8)


@pytest.mark.parametrize("which", ["model", "v1"])
def test_one_by_one_and_together_and_from_a_file(which, picture, request, tmp_path):
    model = request.getfixturevalue(which)
    Image.fromarray(picture).save(tmp_path / "a.png")
    alone = model.predict(picture, "liver", presence_threshold=0.0)
    assert alone.regions[0].mask.shape == (50, 71) and alone.regions[0].mask.dtype == bool
    assert (alone.regions[0].presence is None) is (which == "v1")
    listed = model.predict(str(tmp_path / "a.png"), ["liver", "left kidney[SEP]spleen"], presence_threshold=0.0)
    assert [len(prediction.regions) for prediction in listed] == [1, 2]
    assert np.array_equal(listed[0].regions[0].mask, alone.regions[0].mask)
    batch = model.predict_batch(
        [picture[:, ::-1].copy(), picture], ["spleen", "liver"], batch_size=2, presence_threshold=0.0
    )
    assert np.array_equal(batch[1].regions[0].mask, alone.regions[0].mask)
    assert set(alone.timing_s) == {"image", "masks"}


def test_absent_things_are_said_and_not_painted(model, picture):
    prediction = model.predict(picture, "liver[SEP]spleen", presence_threshold=1.0)
    assert prediction.text == "Not found: liver, spleen." and not any(r.mask.any() for r in prediction.regions)
    assert all(0 <= region.presence <= 1 for region in prediction.regions)


def test_bad_questions_are_named(model, picture):
    for text in ("", "liver[SEP]", [3]):
        with pytest.raises(ValueError, match="prompt"):
            model.predict(picture, text)
    with pytest.raises(ValueError, match="2 images for 1 texts"):
        model.predict_batch([picture, picture], ["liver"])


@pytest.mark.parametrize("shape", [(50, 71), (71, 50), (64, 64), (1, 90)])
def test_a_mask_comes_back_where_it_was(model, shape):
    processor = model.processor
    mask = np.zeros(shape, bool)
    mask[shape[0] // 4 : shape[0] // 2 + 1, shape[1] // 3 : shape[1] // 2] = True
    square = processor.labels(mask)
    logits = torch.where(square > 0, 8.0, -8.0)[None]
    back = processor.restore(logits, shape)[0].numpy() > 0.5
    assert back.shape == shape
    assert (back ^ mask).sum() <= 0.35 * mask.sum()  # a pixel of rim at most
    image = processor.image(np.where(mask, 255, 0).astype(np.uint8))
    assert image.shape == (3, 64, 64) and 0 <= image.min() and image.max() <= 255
    with pytest.raises(ValueError, match="uint8"):
        processor.image(mask.astype(np.float32))
    assert isinstance(processor, ParseProcessor)


def test_volumes_do_not_depend_on_the_size_of_groups(model):
    volume = np.random.default_rng(1).integers(0, 255, (5, 40, 52), dtype=np.uint8)

    def volume_masks(volume, size):
        found = model.predict(volume, "[SEP]".join(PROMPTS), presence_threshold=0.0, overlap="keep", slice_batch=size)
        return np.stack([r.mask for r in found.regions]), np.array([r.presence for r in found.regions])

    masks, presence = volume_masks(volume, 5)
    assert masks.shape == (3, 5, 40, 52) and presence.shape == (3,)
    for size in (1, 2, 3):
        again, there = volume_masks(volume, size)
        assert (again != masks).mean() < 1e-3 and np.allclose(there, presence, atol=1e-4)
    lying, _ = volume_masks(np.moveaxis(volume, 0, 2), 4)
    assert np.array_equal(np.moveaxis(lying, 3, 1), masks)


def test_sharpened_masks_equal_the_recording(picture, tmp_path):
    arrays = np.load(SMALL / "biomedparse" / "upsampler.npz")
    recorded = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    module = OutputUpsampler(6)
    module.load_state_dict({n.removeprefix("w."): t for n, t in recorded.items() if n.startswith("w.")})
    with torch.no_grad():
        found = module(recorded["pred_gmasks_in"], recorded["image_norm"])
    assert (found - recorded["out"]).abs().max() <= 1e-5
    model = build_small(PROMPTS, image_size=64, learned_upsampling=True)
    output = model.segment_slices(torch.rand(2, 3, 64, 64) * 255, PROMPTS)
    assert output.mask_logits.shape == (2, 3, 32, 32) and output.edge_logits.shape == (2, 3, 16, 16)
    model.save_pretrained(tmp_path)
    assert unimed.load(tmp_path, device="cpu").predict(picture, "liver").regions[0].mask.shape == (50, 71)


def test_one_call_makes_what_forward_takes(model):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    inputs = model.processor(images=[image, image[:30]], text=["liver[SEP]spleen", "tumor"], return_tensors="pt")
    assert inputs["num_prompts"].tolist() == [2, 1]
    output = model(**inputs, seed=0)
    assert output.masks.shape[0] == 3
    shared = model.processor(images=[image, image], text="liver")
    assert shared["num_prompts"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="2 texts for 3 images"):
        model.processor(images=[image] * 3, text=["a", "b"])

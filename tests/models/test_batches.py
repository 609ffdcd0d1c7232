"""`predict_batch` of every family gives each image its own answer, whatever holds the images."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import tiny_model

from unimed.models.starting.boltzformer import build_small
from unimed.models.starting.clip import build_small as build_clip
from unimed.models.starting.grounded_small import build_tiny
from unimed.models.starting.uni_med import build_small as build_uni_med
from unimed.structures import as_list, identity

COUNT = 5
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 40, 40, 3), dtype=np.uint8)


class Lazy:
    """A sequence, or data set of torch, that makes its items when asked and does not say where it ends."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return IMAGES[index].copy()


class TorchSet(Lazy, torch.utils.data.Dataset):
    pass


def generated():
    for image in IMAGES:
        yield image.copy()


def one_buffer():
    buffer = np.empty_like(IMAGES[0])
    for image in IMAGES:
        buffer[:] = image
        yield buffer


HOLDERS = {
    "stacked": lambda _: IMAGES,
    "list": lambda _: list(IMAGES),
    "tuple": lambda _: tuple(IMAGES),
    "lazy": lambda _: Lazy(),
    "torch": lambda _: TorchSet(),
    "generator": lambda _: generated(),
    "one buffer": lambda _: one_buffer(),
    "views": lambda _: [IMAGES[i] for i in range(COUNT)],
    "pil": lambda _: (Image.fromarray(image) for image in IMAGES),
    "paths": lambda folder: (folder / f"{i}.png" for i in range(COUNT)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def seen(model, monkeypatch, holder, folder):
    """Means of the images as the model was shown them, in the order of the answers."""
    import unimed.models.grounded.predicting as predicting

    shown = []
    whole = predicting.GroundedPredictor._predict_part

    def spy(self, assembly, part, texts, *rest, **options):
        answers = whole(self, assembly, part, texts, *rest, **options)
        seen = [assembly.sources[assembly.examples[i].images[0]].rgb for i in part]
        shown.extend(zip(texts, [float(rgb.mean()) for rgb in seen], strict=True))
        return answers

    monkeypatch.setattr(predicting.GroundedPredictor, "_predict_part", spy)
    texts = [f"question {number}" for number in range(COUNT)]
    model.predict_batch(HOLDERS[holder](folder), texts, max_new_tokens=1)
    return [mean for _, mean in sorted(shown)]


@pytest.fixture(scope="module")
def grounded():
    return tiny_model()


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_grounded_model_looks_at_every_image(holder, grounded, monkeypatch, folder):
    assert np.allclose(seen(grounded, monkeypatch, holder, folder), IMAGES.mean((1, 2, 3)))


@pytest.mark.parametrize("holder", ["stacked", "torch", "one buffer", "paths"])
def test_the_other_families_too(holder, folder):
    biomedparse, clip = build_small(image_size=64), build_clip(["a b"]).eval()
    texts = ["liver"] * COUNT
    alone = [biomedparse.predict(image, "liver").regions[0].presence for image in IMAGES]
    together = biomedparse.predict_batch(HOLDERS[holder](folder), texts)
    assert np.allclose([one.regions[0].presence for one in together], alone, atol=1e-5)
    one = torch.cat([clip.encode_image(image) for image in IMAGES])
    assert torch.allclose(clip.encode_image(HOLDERS[holder](folder)), one, atol=1e-5)
    uni_med = build_uni_med(["what is it", "a liver"], image_size=56).eval()
    alone = [uni_med.predict(image, "what", max_new_tokens=3).text for image in IMAGES]
    together = uni_med.predict_batch(HOLDERS[holder](folder), ["what"] * COUNT, max_new_tokens=3)
    assert [one.text for one in together] == alone


def test_gray_stacks_and_equal_images(grounded, monkeypatch, folder):
    gray = IMAGES[..., 0]
    assert len(grounded.predict_batch(gray, ["what"] * COUNT, max_new_tokens=1)) == COUNT
    assert identity(IMAGES[0]) == identity(IMAGES[0].copy()) != identity(IMAGES[1])
    assert [one.sum() for one in as_list(one_buffer())] == [one.sum() for one in IMAGES]
    with pytest.raises(ValueError, match="5 images for 2 texts"):
        grounded.predict_batch(generated(), ["a", "b"])


@pytest.mark.parametrize("decoder", ["medsam_lite", "sam2", "sam"])
def test_segment_boxes_on_every_decoder(decoder):
    if decoder == "sam":
        from unimed.models.starting.umedground import build_small_umedground

        model = build_small_umedground(["It is [BOX]."], image_size=64, sam_dim=32, sam_layers=2)
        config = model.config
        config.mask_config.predicts_masks = True
        processor, model = model.processor, type(model)(config).eval()
        model.processor = processor
    else:
        model = tiny_model() if decoder == "medsam_lite" else build_tiny(["a"]).eval()
    assert model.mask_head.kind == decoder
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    boxes = [(5, 5, 30, 30), (20, 10, 69, 49)]
    both = model.segment_boxes(image, boxes, ["one", "two"])
    assert [region.phrase for region in both.regions] == ["one", "two"]
    for box, region in zip(boxes, both.regions, strict=True):
        assert region.mask.shape == (50, 70) and region.box_xyxy_px == box and 0 <= region.confidence <= 1
        alone = model.segment_boxes(image, [box]).regions[0]
        assert (alone.mask == region.mask).mean() > 0.99
    with pytest.raises(ValueError, match="outside the image"):
        model.segment_boxes(image, [(100, 100, 120, 120)])


def test_slips_in_calls_are_told_in_their_own_words(grounded):
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="list with one per image; got the text 'xy'"):
        grounded.predict_batch([image, image], "xy")  # as many letters as images
    with pytest.raises(ValueError, match="got none"):
        grounded.predict(image, None)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        grounded.predict_batch([image], ["x"], batch_size=0)
    with pytest.raises(ValueError, match="list of boxes"):
        grounded.segment_boxes(image, (2, 2, 9, 9))
    with pytest.raises(ValueError, match=r"generate\(\*\*inputs\)"):
        grounded.generate(grounded.processor(images=image, text="x"))


def test_the_pipeline_takes_image_as_well(grounded):
    from unimed.models.pipeline import GroundedImageTextPipeline

    image = np.zeros((16, 16, 3), np.uint8)
    pipe = GroundedImageTextPipeline(model=grounded)
    found = [pipe(text="x", max_new_tokens=2, **{name: image})["text"] for name in ("image", "images")]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="same argument"):
        pipe(image, text="x", image=image)

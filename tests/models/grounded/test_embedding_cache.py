"""Embeddings kept between questions: the answers stay what they are, on every family of backbones."""

import numpy as np
import pytest
from sam2_models import say, tiny_sam2_model
from small_models import tiny_model

from unimed.serve.store import Cache

ANSWER = "<p> x </p> [SEG].<|end|>"


def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((60, 90), (120, 50))]


def answers(model):
    made = []
    for image in images():
        for text in ("segment the nuclei", "where is it"):
            made.append(say(model, ANSWER).predict(image, text, max_new_tokens=20))
    return made


@pytest.mark.parametrize("kind", ["internvl", "llava", "qwen2_5_vl"])
def test_answers_are_the_same_and_every_image_is_encoded_once(kind):
    model = tiny_sam2_model(kind)
    expected = answers(model)
    looked, encoded, usual = [], [], model.image_tokens
    model.embedding_cache = Cache(2**26, looked.append)
    model.image_tokens = lambda *a, **k: (encoded.append(1), usual(*a, **k))[1]
    found = answers(model)
    assert looked.count("hit") == 4 and looked.count("miss") == 4  # tokens and mask features of two images
    assert len(encoded) == 2
    for one, other in zip(expected, found, strict=True):
        assert one.text == other.text and (one.regions[0].mask == other.regions[0].mask).all()
        assert one.regions[0].confidence == other.regions[0].confidence


def test_pixels_that_differ_little_share_nothing():
    model = tiny_model()
    model.embedding_cache = cache = Cache(2**26)
    image = np.full((64, 64, 3), 100, np.uint8)
    other = image.copy()
    other[3:9, 3:9] += 1
    model.predict(image, "segment", max_new_tokens=2)
    model.predict(other, "segment", max_new_tokens=2)
    assert len(cache) == 2

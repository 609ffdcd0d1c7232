"""Half of a surrogate pair in a prompt, as broken JSON brings it, is a sign that nobody knows, and no crash."""

import functools
import json

import numpy as np
import pytest

from unimed.models.starting import boltzformer, clip, uni_med

PROMPTS = ["the liver \ud800", "\udfff", "a\ud83dliver \U0001f600"]
IMAGE = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8)


@functools.cache
def model(family):
    if family == "grounded":
        from small_models import tiny_model

        return tiny_model("point")
    if family == "boltzformer":
        return boltzformer.build_small(["liver"], image_size=64)
    return {"clip": clip, "uni_med": uni_med}[family].build_small(["liver", "heart"])


@pytest.mark.parametrize("family", ["grounded", "boltzformer", "clip", "uni_med"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_half_a_pair_is_no_crash(family, prompt, tmp_path):
    if family == "clip":
        assert model(family).zero_shot(IMAGE, [prompt, "heart"]).label in (prompt, "heart")
        return
    options = {} if family == "boltzformer" else {"max_new_tokens": 2}
    said = model(family).predict(IMAGE, prompt, **options)
    (path,) = said.save(tmp_path)
    assert json.loads(path.read_bytes())["notice"]

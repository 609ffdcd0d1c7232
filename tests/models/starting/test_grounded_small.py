"""Small models that start from nothing: what the language part sees of the vision encoder it did not grow up with."""

import numpy as np
import pytest
import torch
from small_models import tiny_model

from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.starting.grounded_small import standardize_vision


def images(count=4):
    return list(np.random.default_rng(0).integers(0, 255, (count, 40, 40), dtype=np.uint8))


@torch.no_grad()
def test_image_tokens_are_standardized_and_stay_so(tmp_path):
    model = tiny_model()
    shown = images()
    pixels = torch.stack([model.processor.mask_pixels(np.repeat(image[..., None], 3, 2)) for image in shown])
    features = model.mask_head.encode(pixels)
    seen = []
    model.connector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    standardize_vision(model, shown)
    before = model.connect(features=features).tokens
    channels = seen[-1].flatten(0, 1)
    assert channels.mean(dim=0).abs().max() < 1e-3
    assert torch.allclose(channels.std(dim=0, correction=0), torch.ones(channels.shape[1]), atol=1e-2)

    model.save_pretrained(tmp_path / "model")
    again = GroundedMLLM.from_pretrained(tmp_path / "model")
    assert torch.allclose(again.connect(features=features).tokens, before, atol=1e-6)
    with pytest.raises(ValueError, match="no image"):
        standardize_vision(model, [])


def test_a_model_saved_before_that_sees_what_it_saw(tmp_path):
    model = tiny_model()
    values = model.config.to_dict()
    del values["vision_standardized"]
    older = GroundedMLLM(type(model.config).from_dict(values))
    assert not older.config.vision_standardized and "vision_mean" not in older.state_dict()


def test_narrow_language_models_start_wide_enough():
    weight = tiny_model().language_model.layers[0].self_attn.q_proj.weight.detach()
    assert 0.8 < float(weight.std()) * weight.shape[1] ** 0.5 < 1.2

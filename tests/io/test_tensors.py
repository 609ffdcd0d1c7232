"""Tensors of torch as images."""

import numpy as np
import pytest
import torch

from unimed.io.errors import ImageError
from unimed.io.images import load
from unimed.io.volumes import Volume, open_source

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)


@pytest.mark.parametrize("scale", [None, torch.float32, torch.float64, torch.bfloat16])
def test_every_layout_shows_the_same_image(scale):
    for array in (COLOR, GRAY):
        tensor = torch.from_numpy(array)
        tensor = tensor if scale is None else (tensor.to(torch.float64) / 255).to(scale)
        forms = [tensor]
        if array.ndim == 3:
            forms += [
                tensor.permute(2, 0, 1),
                tensor.permute(2, 0, 1)[None],
                tensor.clone().requires_grad_(scale is not None),
            ]
        else:
            forms += [tensor[None], tensor[..., None], tensor[None, None]]
        for form in forms:
            found = load(form).rgb.astype(int)
            assert found.shape == (20, 30, 3)
            assert np.abs(found - load(array).rgb).max() <= (1 if scale is torch.bfloat16 else 0)


def test_deep_values_and_volumes_are_taken_as_they_are_stored():
    deep = RNG.integers(-900, 900, (6, 20, 30)).astype(np.int16)
    lung = dict(modality="CT", site="lung")
    assert np.array_equal(load(torch.from_numpy(deep[0]), **lung).rgb, load(deep[0], **lung).rgb)
    volume = open_source(torch.from_numpy(deep).float())
    assert isinstance(volume, Volume) and np.array_equal(volume.array, deep)


def test_what_is_no_image_is_refused_with_the_remedy():
    tensor = torch.from_numpy(COLOR).permute(2, 0, 1)
    with pytest.raises(ImageError, match="a batch of 2 images; give them as a list, or to predict_batch"):
        load(torch.stack([tensor, tensor]))
    with pytest.raises(ImageError, match="from -2 to .*; colors are uint8, or floats from 0 to 1.*before it was norm"):
        load(tensor / 50 - 2 * (tensor >= 0))

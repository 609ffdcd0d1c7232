"""FocalNet with channels last: the numbers of transformers' modules."""

import pytest
import torch
from torch import nn

from unimed.models.boltzformer import focal
from unimed.models.boltzformer.configuration import BoltzFormerConfig
from unimed.models.boltzformer.features import FocalPyramid


def random_pyramid(**sizes):
    torch.manual_seed(0)
    pyramid = FocalPyramid(BoltzFormerConfig.tiny(**sizes)).eval()
    for value in pyramid.parameters():  # biases and scales begin as zeros and ones
        nn.init.normal_(value.data, std=0.3)
    return pyramid


@pytest.mark.parametrize("values", [64, 1 << 19])
@pytest.mark.parametrize("sizes", [{}, dict(depths=(2, 1), focal_levels=(2, 3), focal_windows=(5, 3))])
def test_maps_are_those_of_the_modules(values, sizes, monkeypatch):
    monkeypatch.setattr(focal, "INNER_VALUES", values)
    pyramid, pixels = random_pyramid(**sizes), torch.randn(2, 3, 64, 96)
    given = pyramid(pixels)  # with gradients: transformers' modules
    before = pixels.clone()
    with torch.no_grad():
        assert focal.serves(pyramid, pixels)
        found = pyramid(pixels)
        pyramid.rearranged = False
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pyramid(pixels), given, strict=True))
    assert torch.equal(pixels, before)
    for ours, theirs in zip(found, given, strict=True):
        assert ours.shape == theirs.shape
        theirs = theirs.detach()
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def test_what_it_leaves_to_the_modules():
    pyramid, pixels = random_pyramid(), torch.randn(1, 3, 64, 64)
    assert not focal.serves(pyramid, pixels)
    with torch.no_grad():
        assert focal.serves(pyramid, pixels)
        assert not focal.serves(pyramid, torch.randn(1, 3, 72, 64))
        assert not focal.serves(pyramid, pixels.to("meta"))
        assert not focal.serves(pyramid, pixels.bfloat16())
        assert not focal.serves(pyramid.train(), pixels)
        wrapped = pyramid.eval().stages[1].layers[0].modulation
        wrapped.projection_in = nn.Sequential(wrapped.projection_in)
        assert not focal.serves(pyramid, pixels)

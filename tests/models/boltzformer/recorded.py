"""Recorded numbers of BiomedParse, and the small models with the recorded weights."""

import numpy as np
import torch
from golden_files import large
from safetensors.torch import load_file

from unimed.models.boltzformer import BiomedParseV1Config, BiomedParseV1Model, BoltzFormerConfig, BoltzFormerModel
from unimed.models.checkpoints.biomedparse import load_into


class Recording:
    """Tensors of one file by name."""

    def __init__(self, name):
        self.arrays = np.load(large("biomedparse", name), allow_pickle=False)

    def __getitem__(self, name):
        return torch.from_numpy(self.arrays[name])

    def __contains__(self, name):
        return name in self.arrays.files

    def draws(self, group=0, layers=4):
        """The recorded uniform numbers of one group of slices."""

        def recorded(layer, shape):
            return self[f"rand.{group * (layers + 1) + layer + 1:02d}"].view(shape)

        return recorded


def v2_model(**changes):
    """The recorded v2 model: padding as published."""
    model = BoltzFormerModel(BoltzFormerConfig.tiny(**({"compat": "reference"} | changes)))
    load_into(model, load_file(large("biomedparse", "v2_tiny_weights.safetensors")))
    return model.eval()


def v1_model(**changes):
    """The recorded v1 model."""
    model = BiomedParseV1Model(BiomedParseV1Config.tiny(**changes))
    load_into(model, load_file(large("biomedparse", "v1_tiny_weights.safetensors")))
    return model.eval()


def distance(found, expected):
    return (found.float() - expected.float()).abs().max().item()

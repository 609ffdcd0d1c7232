"""Recorded numbers of BiomedParse, and the small models with the recorded weights."""

from closeness import MODEL, assert_close
from golden_files import tensors

from unimed.models.boltzformer import BiomedParseV1Config, BiomedParseV1Model, BoltzFormerConfig, BoltzFormerModel
from unimed.models.checkpoints.biomedparse import load_into


class Recording:
    """Tensors of one file by name."""

    def __init__(self, name):
        self.tensors = tensors("biomedparse", name)

    def __getitem__(self, name):
        return self.tensors[name]

    def __contains__(self, name):
        return name in self.tensors

    def draws(self, group=0, layers=4):
        """The recorded uniform numbers of one group of slices."""

        def recorded(layer, shape):
            return self[f"rand.{group * (layers + 1) + layer + 1:02d}"].view(shape)

        return recorded


def v2_model(**changes):
    """The recorded v2 model: padding as published."""
    model = BoltzFormerModel(BoltzFormerConfig.tiny(**({"compat": "reference"} | changes)))
    load_into(model, tensors("biomedparse", "v2_tiny_weights.safetensors"))
    return model.eval()


def v1_model(**changes):
    """The recorded v1 model."""
    model = BiomedParseV1Model(BiomedParseV1Config.tiny(**changes))
    load_into(model, tensors("biomedparse", "v1_tiny_weights.safetensors"))
    return model.eval()


def near(found, expected, relative=MODEL, name=""):
    """Assert that what was found is what was recorded, up to a part of the largest value."""
    return assert_close(found.float(), expected, name, relative)

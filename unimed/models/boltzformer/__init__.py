"""BiomedParse: text-prompted masks by Boltzmann attention (v2), and v1; importing registers both with transformers."""

from transformers import AutoConfig, AutoModel

from unimed.models.boltzformer.configuration import BiomedParseV1Config, BoltzFormerConfig
from unimed.models.boltzformer.encoding import ImageFeatures
from unimed.models.boltzformer.modeling import BoltzFormerModel, BoltzFormerOutput, SliceOutput
from unimed.models.boltzformer.prompting import PromptFeatures
from unimed.models.boltzformer.v1 import BiomedParseV1Model, BiomedParseV1Output

AutoConfig.register("unimed_boltzformer", BoltzFormerConfig)
AutoModel.register(BoltzFormerConfig, BoltzFormerModel)
AutoConfig.register("unimed_biomedparse_v1", BiomedParseV1Config)
AutoModel.register(BiomedParseV1Config, BiomedParseV1Model)

__all__ = [
    "BiomedParseV1Config",
    "BiomedParseV1Model",
    "BiomedParseV1Output",
    "BoltzFormerConfig",
    "BoltzFormerModel",
    "BoltzFormerOutput",
    "ImageFeatures",
    "PromptFeatures",
    "SliceOutput",
]

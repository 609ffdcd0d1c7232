"""BiomedParse v2: text-prompted masks by Boltzmann attention; importing this package registers it with transformers."""

from transformers import AutoConfig, AutoModel

from unimed.models.boltzformer.configuration import BoltzFormerConfig
from unimed.models.boltzformer.modeling import BoltzFormerModel, BoltzFormerOutput, ImageFeatures, SliceOutput
from unimed.models.boltzformer.prompting import PromptFeatures

AutoConfig.register("unimed_boltzformer", BoltzFormerConfig)
AutoModel.register(BoltzFormerConfig, BoltzFormerModel)

__all__ = [
    "BoltzFormerConfig",
    "BoltzFormerModel",
    "BoltzFormerOutput",
    "ImageFeatures",
    "PromptFeatures",
    "SliceOutput",
]

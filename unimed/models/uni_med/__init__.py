"""Uni-Med as published: EVA-ViT-g, a connector of experts, Llama. Importing registers it with transformers."""

from transformers import AutoConfig, AutoModel

from unimed.models.uni_med.configuration import UniMedConfig
from unimed.models.uni_med.modeling import UniMedModel, UniMedOutput
from unimed.models.uni_med.processing import UniMedProcessor

AutoConfig.register("unimed_uni_med", UniMedConfig)
AutoModel.register(UniMedConfig, UniMedModel)

__all__ = ["UniMedConfig", "UniMedModel", "UniMedOutput", "UniMedProcessor"]

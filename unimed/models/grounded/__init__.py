"""The grounded multimodal language models; importing this package registers them with transformers."""

from transformers import AutoConfig, AutoModel

from unimed.models.grounded.configuration import GroundedConfig
from unimed.models.grounded.modeling import GroundedMLLM, GroundedOutput
from unimed.models.grounded.processing import GroundedProcessor

AutoConfig.register("unimed_grounded", GroundedConfig)
AutoModel.register(GroundedConfig, GroundedMLLM)

__all__ = ["GroundedConfig", "GroundedMLLM", "GroundedOutput", "GroundedProcessor"]

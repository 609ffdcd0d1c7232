"""Contrastive image-text models on open_clip. Importing registers them with transformers."""

from transformers import AutoConfig, AutoModel

from unimed.io.result import ClassProbabilities as ZeroShot
from unimed.models.clip.configuration import VARIANTS, ClipConfig, variant
from unimed.models.clip.modeling import ClipModel
from unimed.models.clip.processing import ClipProcessor
from unimed.models.clip.published import create_model_and_transforms, get_tokenizer

AutoConfig.register("unimed_clip", ClipConfig)
AutoModel.register(ClipConfig, ClipModel)

__all__ = [
    "VARIANTS",
    "ClipConfig",
    "ClipModel",
    "ClipProcessor",
    "ZeroShot",
    "create_model_and_transforms",
    "get_tokenizer",
    "variant",
]

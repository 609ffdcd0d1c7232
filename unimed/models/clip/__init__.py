"""Contrastive image-text models on open_clip. Importing registers them with transformers."""

from transformers import AutoConfig, AutoModel

from unimed.io.result import ClassProbabilities as ZeroShot
from unimed.models.clip.configuration import VARIANTS, ClipConfig, variant
from unimed.models.clip.modeling import ClipModel
from unimed.models.clip.processing import ClipProcessor

AutoConfig.register("unimed_clip", ClipConfig)
AutoModel.register(ClipConfig, ClipModel)

__all__ = ["VARIANTS", "ClipConfig", "ClipModel", "ClipProcessor", "ZeroShot", "variant"]

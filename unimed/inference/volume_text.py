"""Text-prompted segmentation of volumes, by the name under which it was first known; `model.predict` does the same."""

from unimed.models.boltzformer.tokenizing import PromptError
from unimed.models.boltzformer.volumes import number_instances, segment_volume

__all__ = ["PromptError", "number_instances", "segment_volume"]

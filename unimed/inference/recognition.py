"""Segmentation and recognition of pictures, by the names under which they were first known."""

from unimed.models.boltzformer.recognition import P_VALUE, as_prediction, hierarchy, recognize, segment_image

__all__ = ["P_VALUE", "as_prediction", "hierarchy", "recognize", "segment_image"]

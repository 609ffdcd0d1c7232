"""Questions about volumes, by the name under which they were first known; `model.predict` takes volumes too."""

from unimed.models.grounded.volumes import PLANES, Slices, VolumeError, predict_volume

__all__ = ["PLANES", "Slices", "VolumeError", "predict_volume"]

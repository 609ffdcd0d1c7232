"""unimed: grounded biomedical vision-language models. Research use only, not a medical device."""

from unimed.structures import Geometry, Prediction, Region, Sample

__version__ = "0.1.0.dev0"

__all__ = ["Geometry", "Prediction", "Region", "Sample", "__version__"]

"""unimed: grounded biomedical vision-language models. Research use only, not a medical device."""

from unimed.models.families import register_when_needed
from unimed.structures import Geometry, Prediction, Region, Sample

__version__ = "0.1.0.dev0"


def load(path, **options):
    """A model ready to predict, from an exported folder or a published checkpoint; see `unimed.models.auto.load`."""
    from unimed.models.auto import load as run

    return run(path, **options)


register_when_needed()

__all__ = ["Geometry", "Prediction", "Region", "Sample", "__version__", "load"]

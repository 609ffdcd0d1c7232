"""unimed: grounded biomedical vision-language models. Research use only, not a medical device."""

from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.models.families import register_when_needed
from unimed.structures import Region, Sample
from unimed.version import __version__


def load(path, **options):
    """A model ready to predict, from an exported folder or a published checkpoint; see `unimed.models.auto.load`."""
    from unimed.models.auto import load as run

    return run(path, **options)


def read(path, **options):
    """An image or volume as (array, Geometry); see `unimed.io.read.read` for formats and options."""
    from unimed.io.read import read as run

    return run(path, **options)


register_when_needed()

__all__ = ["Geometry", "Prediction", "Region", "Sample", "__version__", "load", "read"]

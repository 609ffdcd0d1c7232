"""unimed: grounded biomedical vision-language models. Research use only, not a medical device."""

from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.structures import Region, Sample
from unimed.version import __version__


def load(path, **options):
    """A model ready to predict, from an exported folder or a published checkpoint; see `unimed.models.auto.load`."""
    from unimed.models.auto import load as run

    return run(path, **options)


def __getattr__(name):
    if name == "models":  # `unimed.models` after `import unimed`, and only then its seconds
        import importlib

        return importlib.import_module("unimed.models")
    raise AttributeError(f"module 'unimed' has no attribute {name!r}")


__all__ = ["Geometry", "Prediction", "Region", "Sample", "__version__", "load"]

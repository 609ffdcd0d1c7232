"""unimed: grounded biomedical vision-language models. Research use only, not a medical device."""

from unimed.geometry import Geometry
from unimed.io.result import Prediction
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


def evaluate(predictions, samples, **options):
    """Rows of scores, one schema for masks, boxes, presence, answers and texts; see `unimed.evaluation.evaluating`."""
    from unimed.evaluation.evaluating import evaluate as run

    return run(predictions, samples, **options)


def __getattr__(name: str):
    """`unimed.metrics` and `unimed.models`, imported when they are asked for: neither is light."""
    if name in ("metrics", "models"):
        import importlib

        return importlib.import_module(f"unimed.{name}")
    raise AttributeError(f"module 'unimed' has no attribute {name!r}")


__all__ = ["Geometry", "Prediction", "Region", "Sample", "__version__", "evaluate", "load", "metrics", "read"]

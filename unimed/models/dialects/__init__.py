"""How checkpoints word questions, name tasks, point at things and write boxes. A processor holds the dialect of its
model; readers of data sets know none."""

from unimed.models.dialects import uni_med, unibiomed, vision_language
from unimed.models.dialects.base import Dialect
from unimed.models.dialects.umedground import GroundedDialect
from unimed.registry import DIALECTS

__all__ = ["Dialect", "GroundedDialect", "build_dialect", "uni_med", "unibiomed", "vision_language"]


def build_dialect(dialect: str | dict | Dialect | None) -> Dialect:
    """A dialect by its name, or by its name and arguments (`{"type": "uni_med", "pools": ...}`); ours by default.

    Raises:
        RegistryError: an unknown name or argument, with the nearest known one.
    """
    if isinstance(dialect, Dialect):
        return dialect
    config = {"type": dialect} if isinstance(dialect, str) else dict(dialect or {"type": "grounded"})
    return DIALECTS.build(config)

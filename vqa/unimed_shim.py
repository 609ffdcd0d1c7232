"""Opens this folder through the installed package `unimed`; no model code lies here."""

from unimed.models.grounded.configuration import GroundedConfig
from unimed.models.grounded.modeling import GroundedMLLM

__all__ = ["GroundedConfig", "GroundedMLLM"]

"""uMedGround as a configuration of `GroundedMLLM`: LLaVA on Llama, SAM, and boxes off the tokens of SAM's decoder."""

from unimed.models.grounded.teacher_forcing import teacher_forced
from unimed.models.starting.umedground import build_from_parts, build_small_umedground

__all__ = ["build_from_parts", "build_small_umedground", "teacher_forced"]

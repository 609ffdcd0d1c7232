"""uMedGround as a configuration of `GroundedMLLM`: LLaVA on Llama, SAM, and boxes off the tokens of SAM's decoder."""

from unimed.models.umedground.building import build_from_parts, build_small_umedground
from unimed.models.umedground.teaching import teacher_forced

__all__ = ["build_from_parts", "build_small_umedground", "teacher_forced"]

"""Property tests run on busy machines: a slow example is no failure."""

from hypothesis import settings

settings.register_profile("evaluation", deadline=None)
settings.load_profile("evaluation")

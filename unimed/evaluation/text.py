"""The former place of `unimed.metrics.text`, for scripts that import it from here."""

from unimed.metrics.text import *  # noqa: F403

"""What a benchmark asks: models of ours and of others, endpoints, files with predictions, and trivial answers.

A module of this package registers one kind in `CONTESTANTS`; `contestant("KIND:REFERENCE")` opens one.
"""

from unimed.evaluation.contestants.base import Contestant, Settings, asked, contestant

__all__ = ["Contestant", "Settings", "asked", "contestant"]

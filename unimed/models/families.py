"""Our model types become known to transformers' Auto classes when the families are imported.

That happens with `import unimed.models`, in `unimed.load`, and through the few lines that every saved folder holds for
`trust_remote_code=True`. `import unimed` alone stays light and registers nothing; transformers offers no entry point
by which an installed package could do it.
"""

from __future__ import annotations

import importlib

#: Packages whose import registers our model types with transformers.
FAMILIES = (
    "unimed.models.grounded",
    "unimed.models.boltzformer",
    "unimed.models.clip",
    "unimed.models.uni_med",
)


def register() -> None:
    """Import every family, and the pipeline they share."""
    for family in (*FAMILIES, "unimed.models.pipeline"):
        importlib.import_module(family)

"""Registration of our model types with transformers' Auto classes, when the families are imported.

That happens with `import unimed.models`, in `unimed.load`, and through the few lines that every saved folder holds for
`trust_remote_code=True`. `import unimed` alone stays light and registers nothing; transformers offers no entry point
by which an installed package could do it.
"""

from __future__ import annotations

import importlib

from unimed.registry import import_plugins

#: Packages whose import registers our model types with transformers.
FAMILIES = (
    "unimed.models.grounded",
    "unimed.models.boltzformer",
    "unimed.models.clip",
    "unimed.models.checkpoints.uni_med_saved",
)


def register() -> None:
    """Import every family, their pipeline, and the plug-ins: a folder may hold a decoder or backbone of theirs."""
    for family in (*FAMILIES, "unimed.models.pipeline"):
        importlib.import_module(family)
    import_plugins()

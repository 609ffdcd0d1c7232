"""Our model types become known to transformers' Auto classes, at the moment those are first used.

`import unimed` must stay light, so nothing of transformers is imported for it. Where transformers' module of Auto
classes is there already, the families are registered at once; otherwise right after its import.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys

#: Packages whose import registers our model types with transformers.
FAMILIES = (
    "unimed.models.grounded",
    "unimed.models.boltzformer",
    "unimed.models.clip",
    "unimed.models.checkpoints.uni_med_saved",
)
_WATCHED = "transformers.models.auto.modeling_auto"


def register() -> None:
    """Import every family."""
    for family in FAMILIES:
        importlib.import_module(family)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the watched module as everybody else would, and registers the families once it has run."""

    def find_spec(self, name, path=None, target=None):
        if name != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module):
            run(module)
            # A family that is being imported may have led here: it registers itself, and a second import of it would
            # be circular.
            if not any(family in sys.modules for family in FAMILIES):
                try:
                    register()
                except ImportError as error:
                    # A model of transformers, half imported, led here, and a family needs it whole. The families
                    # register when they are imported themselves, or by `unimed.load`.
                    if "partially initialized module" not in str(error):
                        raise

        spec.loader.exec_module = run_and_register
        return spec


def register_when_needed() -> None:
    """Register now where the Auto classes are loaded, else when they are."""
    if _WATCHED in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())

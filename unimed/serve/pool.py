"""The models of a server: loaded when first asked for, unloaded when nobody asks for a while."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from unimed.serve.problems import missing


class ModelPool:
    """Models by name.

    Args:
        loaders: name -> function that loads the model; the first name is the default.

    Raises:
        ValueError: no model.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Any]]):
        if not loaders:
            raise ValueError("a server needs at least one model")
        self.loaders = dict(loaders)
        self.created = int(time.time())
        self._models: dict[str, Any] = {}
        self._used: dict[str, float] = {}
        self._locks = {name: threading.Lock() for name in loaders}

    @property
    def names(self) -> list[str]:
        return list(self.loaders)

    @property
    def default(self) -> str:
        return self.names[0]

    def name_of(self, name: str | None) -> str:
        """The name itself; the default for None.

        Raises:
            Problem: 404, no such model.
        """
        if name is None:
            return self.default
        if name not in self.loaders:
            raise missing("model", name)
        return name

    def get(self, name: str):
        """The model, loaded where it is not yet; callers on one thread per model need no lock of their own."""
        with self._locks[name]:
            if name not in self._models:
                self._models[name] = self.loaders[name]()
            self._used[name] = time.monotonic()
            return self._models[name]

    def loaded(self, name: str):
        """The model where it is loaded, else None."""
        return self._models.get(name)

    def reap(self, idle_s: float) -> list[str]:
        """Unload models that nobody asked for `idle_s` seconds; returns their names."""
        gone = []
        for name in list(self._models):
            with self._locks[name]:
                if name in self._models and time.monotonic() - self._used[name] > idle_s:
                    del self._models[name]
                    gone.append(name)
        if gone:
            gc.collect()
        return gone


def describe(model) -> dict:
    """What a model can do, for `/capabilities`."""
    config = getattr(model, "config", None)
    contrastive, prompted = hasattr(model, "zero_shot"), hasattr(model, "segment_slices")
    return {
        "type": getattr(config, "model_type", type(model).__name__),
        "kind": "labels" if contrastive else "segments" if prompted else "answers",
        "streams": streams(model),
        "history": streams(model),
        "regions": not contrastive,
    }


def streams(model) -> bool:
    """Whether answers can be watched while they are said, and earlier turns are read."""
    return hasattr(model, "seg_states") and hasattr(model, "processor")

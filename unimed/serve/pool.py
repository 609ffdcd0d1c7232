"""The models of a server: loaded when first asked for, unloaded when nobody asks for a while."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from unimed.inference.asking import kind_of
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
        self._private: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Models that everybody may ask."""
        return [name for name in self.loaders if name not in self._private]

    def add(self, name: str, loader: Callable[[], Any]) -> None:
        """Add a model that no list shows and `name_of` does not know, or replace it by a newer one."""
        lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            self._private.add(name)
            self.loaders[name] = loader
            self._models.pop(name, None)

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
        if name not in self.names:
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
    return {
        "type": getattr(config, "model_type", type(model).__name__),
        "kind": kind_of(model),
        "streams": streams(model),
        "history": streams(model),
        "regions": kind_of(model) != "labels",
    }


def streams(model) -> bool:
    """Whether answers can be watched while they are said, and earlier turns are read."""
    return hasattr(model, "seg_states") and hasattr(model, "processor")

"""The names a config may use: tasks, models, datasets, collators, hooks, metrics, benchmarks and writers of results.

A class registers itself with a decorator, and a config builds it by its name:

    @DATASETS.register_module()
    class FolderDataset: ...

    DATASETS.build(dict(type="FolderDataset", root="data/mine"))

The registries are mmengine's. Building is ours, because a user who mistypes a name should read what was meant, not a
stack of scopes. Packages are searched for modules the first time a registry is asked for a name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.registry import Registry

#: Where the classes of each registry live; imported when a name is first asked for.
LOCATIONS = {
    "task": ("unimed.tasks",),
    "dataset": ("unimed.data.readers", "unimed.data"),
    "collator": ("unimed.data.collate", "unimed.data.readers"),
    "hook": ("unimed.engine",),
    "metric": ("unimed.metrics",),
    "benchmark": ("unimed.evaluation.benchmarks",),
    "model": ("unimed.models.building",),
    "writer": ("unimed.io.writers",),
}
#: Modules that failed to import while a package was searched, with the reason, for the error message.
_unavailable: dict[str, str] = {}
_searched: set[str] = set()


class RegistryError(KeyError):
    """A name no registry knows, or a constructor key the class does not take."""

    def __str__(self) -> str:
        return str(self.args[0])


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `choices`, or an empty string when none is close."""
    lowered = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""


def build(config: Mapping[str, Any], registry: Registry, **defaults: Any) -> Any:
    """Build the object a config describes.

    Args:
        config: a mapping with `type` (a registered name or a class) and the constructor's arguments.
        registry: where a name is looked up.
        defaults: arguments used where the config does not give them.

    Raises:
        RegistryError: no `type`, an unknown name (with the valid ones and the closest), or an unknown constructor key.
        TypeError: config is no mapping.
    """
    cls, arguments = check(config, registry, **defaults)
    try:
        return cls(**arguments)
    except TypeError as error:
        clearer = _unknown_argument(error, cls, registry)
        if clearer is None:
            raise
        raise clearer from error


def check(config: Mapping[str, Any], registry: Registry, **defaults: Any) -> tuple[Any, dict[str, Any]]:
    """The class a config names and the arguments it would get, without building it.

    Raises:
        RegistryError, TypeError: as `build`.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            f"a {registry.name} is described by dict(type=..., ...), got {type(config).__name__}: {config!r}"
        )
    arguments = {**defaults, **{key: value for key, value in config.items() if key != "_scope_"}}
    kind = arguments.pop("type", None)
    if kind is None:
        raise RegistryError(
            f"a {registry.name} needs a key 'type', one of {_choices(registry)}; got keys {list(config)}"
        )
    cls = _look_up(kind, registry) if isinstance(kind, str) else kind
    if not callable(cls):
        raise RegistryError(f"'type' of a {registry.name} must be a name or a class, got {kind!r}")
    _check_arguments(cls, arguments, registry, kind if isinstance(kind, str) else cls.__name__)
    return cls, arguments


def _unknown_argument(error: TypeError, cls: Any, registry: Registry) -> RegistryError | None:
    """What to tell a user whose key reached a function further in, as those of `task.model` do; None otherwise."""
    found = re.fullmatch(r"(.+)\(\) got an unexpected keyword argument '(\w+)'.*", str(error))
    if not found:
        return None
    function, key = found.group(1).removesuffix(".__init__"), found.group(2)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    bases = inspect.getmro(cls) if inspect.isclass(cls) else ()
    owner = next((base for base in bases if base.__qualname__ == function), frame.f_globals.get(function))
    choices = [] if owner is None else [name for name in inspect.signature(owner).parameters if name != "self"]
    valid = f" Valid arguments: {sorted(choices)}" if choices else ""
    return RegistryError(
        f"{registry.name} {cls.__name__!r}: {function} takes no argument {key!r}"
        f"{did_you_mean(key, choices) or '.'}{valid}"
    )


def _look_up(name: str, registry: Registry):
    name = name.removeprefix("unimed.")
    if name not in registry.module_dict:
        for package in LOCATIONS.get(registry.name, ()):
            _import_package(package)
    if name not in registry.module_dict and "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise RegistryError(f"{registry.name} {name!r} cannot be imported: {error}") from error
    if name not in registry.module_dict:
        broken = "".join(f"\n  {module} could not be imported: {reason}" for module, reason in _unavailable.items())
        raise RegistryError(
            f"unknown {registry.name} {name!r}{did_you_mean(name, registry.module_dict)} "
            f"Valid choices: {_choices(registry)}{broken}"
        )
    return registry.module_dict[name]


def registered(registry: Registry) -> dict[str, Any]:
    """Name -> entry of everything a registry holds, after the modules that fill it were imported."""
    return {name: registry.module_dict[name] for name in _choices(registry)}


def look_up(name: str, registry: Registry) -> Any:
    """The entry of a name.

    Raises:
        RegistryError: an unknown name, with the valid ones and the closest.
    """
    return _look_up(name, registry)


def _choices(registry: Registry) -> list[str]:
    for package in LOCATIONS.get(registry.name, ()):
        _import_package(package)
    return sorted(registry.module_dict)


def _import_package(package: str) -> None:
    """Import a module, or the modules of a package, so that their classes register; not those of sub-packages."""
    if package in _searched:
        return
    _searched.add(package)
    found = importlib.import_module(package)
    for module in pkgutil.iter_modules(getattr(found, "__path__", ()), prefix=f"{package}."):
        if module.ispkg:
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            # A package holds modules that need extras; the one that is missing matters only when its name is asked for.
            _unavailable[module.name] = str(error)


def _check_arguments(cls, arguments: Mapping[str, Any], registry: Registry, name: str) -> None:
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [key for key in arguments if key not in parameters]
    if unknown:
        key = unknown[0]
        raise RegistryError(
            f"{registry.name} {name!r} takes no argument {key!r}{did_you_mean(key, parameters)} "
            f"Valid arguments: {sorted(parameters)}"
        )
    missing = [
        parameter
        for parameter, p in parameters.items()
        if p.default is inspect.Parameter.empty
        and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and parameter not in arguments
    ]
    if missing:
        raise RegistryError(f"{registry.name} {name!r} needs the argument {missing[0]!r}")


def _build_func(config, registry=None, default_args=None, **defaults):
    return build(config, registry, **(default_args or {}), **defaults)


TASKS = Registry("task", build_func=_build_func, scope="unimed")
DATASETS = Registry("dataset", build_func=_build_func, scope="unimed")
COLLATORS = Registry("collator", build_func=_build_func, scope="unimed")
MODELS = Registry("model", build_func=_build_func, scope="unimed")
HOOKS = Registry("hook", build_func=_build_func, scope="unimed")
METRICS = Registry("metric", build_func=_build_func, scope="unimed")
BENCHMARKS = Registry("benchmark", build_func=_build_func, scope="unimed")
WRITERS = Registry("writer", build_func=_build_func, scope="unimed")

"""Registries: the names a config may use, from data sets and tasks to heads, decoders, metrics and benchmarks.

A class registers itself with a decorator, and a config builds it by its name:

    @DATASETS.register_module()
    class FolderDataset: ...

    DATASETS.build(dict(type="FolderDataset", root="data/mine"))

An entry carries all that has to be known of a thing, so that a new one is one file; docs/extend.md has a recipe for
each kind. Packages of ours (`LOCATIONS`) are searched for modules the first time a registry is asked for a name, and
after them the plug-ins: modules named in `UNIMED_PLUGINS` (comma-separated) and in the entry points of the group
"unimed.plugins" of installed packages.

The registries are mmengine's. Building is ours, because a user who mistypes a name should read what was meant, not a
stack of scopes. Arguments and types that were renamed keep their old names (`renames`, `formerly`), with one warning.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmengine.registry import Registry

logger = logging.getLogger("unimed")

#: Where the classes of each registry live; imported when a name is first asked for.
LOCATIONS = {
    "task": ("unimed.tasks",),
    "dataset": ("unimed.data.readers", "unimed.data"),
    "collator": ("unimed.data.collate", "unimed.data.readers"),
    "hook": ("unimed.engine",),
    "dialect": ("unimed.models.dialects",),
    "metric": ("unimed.metrics",),
    "benchmark": ("unimed.evaluation.benchmarks",),
    "contestant": ("unimed.evaluation.contestants",),
    "model": ("unimed.models.building",),
    "writer": ("unimed.io.writers",),
    "head": ("unimed.models.heads",),
    "decoder": ("unimed.models.heads", "unimed.models.boltzformer.prompted"),
    "connector": ("unimed.models.connectors",),
    "backbone": ("unimed.models.backbones",),
}
#: Environment variable with modules to import, separated by commas; PYTHONPATH says where they are.
PLUGINS = "UNIMED_PLUGINS"
#: Entry points of this group name modules of installed packages.
PLUGIN_GROUP = "unimed.plugins"
#: Modules that failed to import while a package was searched, with the reason, for the error message.
_unavailable: dict[str, str] = {}
_searched: set[str] = set()
_plugins_searched = False
_told: set[str] = set()
#: Registry -> {former type: dict(type=..., values it had by itself)}.
_former: dict[str, dict[str, dict[str, Any]]] = {}


class RegistryError(KeyError):
    """A name no registry knows, or a constructor key the class does not take."""

    def __str__(self) -> str:
        return str(self.args[0])


def warn_once(message: str) -> None:
    """Log a warning, and the same one never again in this process."""
    if message not in _told:
        _told.add(message)
        logger.warning(message)


def renames(**names: str | None) -> Callable:
    """Decorator of a class or function whose arguments had other names: `@renames(old="new")`.

    The old name is understood in configs and in calls, with one warning; `old=None` marks an argument that is gone and
    is ignored.

    Raises:
        TypeError: when it is called with both names of an argument.
    """

    def decorate(thing):
        call = thing.__init__ if inspect.isclass(thing) else thing

        @functools.wraps(call)
        def renamed(*args, **kwargs):
            for old, new in names.items():
                if old in kwargs and new in kwargs:
                    raise TypeError(f"{thing.__name__} got both {old!r} and {new!r}, which is its name today")
            # Of a base class the user knows the class that was called.
            name = type(args[0]).__name__ if inspect.isclass(thing) else thing.__name__
            return call(*args, **today(kwargs, names, name))

        target = thing if inspect.isclass(thing) else renamed
        if target is thing:
            thing.__init__ = renamed
        target.renamed_arguments = {**getattr(thing, "renamed_arguments", {}), **names}
        return target

    return decorate


def formerly(name: str, registry: Registry, **today_is: Any) -> None:
    """Say what a `type` that is gone is called today: `formerly("Old", TASKS, type="New", scores="benchmarks")`.

    Configs with the old one open with one warning, and with the values that it had by itself where they give none.
    """
    _former.setdefault(registry.name, {})[name] = today_is


def today(values: Mapping[str, Any], names: Mapping[str, str | None], where: str) -> dict[str, Any]:
    """Values under the names of today: `names` says which old one has which new one; each is told of once.

    An old spelling is the user's own (what we ship uses the new one), so it takes the place of the new one.
    """
    values = dict(values)
    for old, new in names.items():
        if old in values:
            value = values.pop(old)
            if new is None:
                warn_once(f"{where}: {old!r} is gone and ignored")
            else:
                values[new] = value
                warn_once(f"{where}: {old!r} is called {new!r} now")
    return values


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `choices`, or an empty string when none is close."""
    lowered = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""


def keywords(*functions: Callable) -> set[str]:
    """Names of the arguments that have a default, or are given by name alone, of any of the functions."""
    parameters = [one for function in functions for one in inspect.signature(function).parameters.values()]
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        one.name
        for one in parameters
        if one.kind not in variable and (one.kind is one.KEYWORD_ONLY or one.default is not one.empty)
    }


def refuse_options(given: Iterable[str], taken: Iterable[str], what: str, of: str = "") -> None:
    """Refuse options that a call does not take, where python would name a function that the user never called.

    Raises:
        TypeError: names the first of them, what was meant, and the valid ones.
    """
    valid = sorted(taken)
    for name in given:
        if name not in valid:
            close = did_you_mean(name, valid) or "."
            raise TypeError(f"{what} takes no option {name!r}{of}{close} Valid options: {', '.join(valid)}")


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
    if isinstance(kind, str) and (now := _today_called(kind, registry)):
        shown = ", ".join(f"{key}={value!r}" for key, value in now.items())
        warn_once(f"{registry.name} {kind!r} is dict({shown}, ...) now")
        arguments = {**now, **arguments}
        kind = arguments.pop("type")
    cls = _look_up(kind, registry) if isinstance(kind, str) else kind
    if not callable(cls):
        raise RegistryError(f"'type' of a {registry.name} must be a name or a class, got {kind!r}")
    name = kind if isinstance(kind, str) else cls.__name__
    arguments = today(arguments, getattr(cls, "renamed_arguments", {}), f"{registry.name} {name!r}")
    _check_arguments(cls, arguments, registry, name)
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
    if name not in registry.module_dict:
        import_plugins()
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


def _today_called(name: str, registry: Registry) -> dict[str, Any]:
    """What `formerly` said of a type; {} for those that are registered, and for those that never were."""
    if name not in registry.module_dict and name not in _former.get(registry.name, ()):
        for package in LOCATIONS.get(registry.name, ()):
            _import_package(package)
    return {} if name in registry.module_dict else _former.get(registry.name, {}).get(name, {})


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
    import_plugins()
    return sorted(registry.module_dict)


def import_plugins() -> None:
    """Import the modules named by `UNIMED_PLUGINS` and by the entry points of other packages, once.

    A package that cannot be imported is left out with a warning; what the user named must be there.

    Raises:
        RegistryError: a module of `UNIMED_PLUGINS` cannot be imported.
    """
    global _plugins_searched
    if _plugins_searched:
        return
    # A plug-in looks up names itself while it is imported; it must not start the search again.
    _plugins_searched = True
    for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        try:
            entry.load()
        except Exception as error:
            warn_once(f"plug-in {entry.name!r} ({entry.value}) is left out: {type(error).__name__}: {error}")
    for module in filter(None, (part.strip() for part in os.environ.get(PLUGINS, "").split(","))):
        try:
            importlib.import_module(module)
        except ImportError as error:
            _plugins_searched = False
            raise RegistryError(
                f"{PLUGINS}: {module} cannot be imported ({error}); set PYTHONPATH to the folder it is in"
            ) from error


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
DIALECTS = Registry("dialect", build_func=_build_func, scope="unimed")
MODELS = Registry("model", build_func=_build_func, scope="unimed")
#: Box heads: `unimed.models.heads.box.BoxHead`, under the kind of the head.
HEADS = Registry("head", build_func=_build_func, scope="unimed")
#: Mask decoders, under the `model_type` of their configuration.
DECODERS = Registry("decoder", build_func=_build_func, scope="unimed")
CONNECTORS = Registry("connector", build_func=_build_func, scope="unimed")
#: Adapters over language and image-text models, under the `model_type` of the transformers configuration.
BACKBONES = Registry("backbone", build_func=_build_func, scope="unimed")
HOOKS = Registry("hook", build_func=_build_func, scope="unimed")
METRICS = Registry("metric", build_func=_build_func, scope="unimed")
BENCHMARKS = Registry("benchmark", build_func=_build_func, scope="unimed")
#: What a benchmark asks: models of ours and of others, endpoints, files with predictions.
CONTESTANTS = Registry("contestant", build_func=_build_func, scope="unimed")
WRITERS = Registry("writer", build_func=_build_func, scope="unimed")

"""Configs: python files with `_base_`, checked before anything is built."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from unimed.engine.config_files import ConfigError, apply_options, as_config, parse_options, read_file
from unimed.registry import did_you_mean, warn_once

NUMBER = (int, float)
NONE = type(None)
#: key -> (types, default). `...` marks a key without default; a dict as default lists the keys it may hold.
KEYS: dict[str, tuple[tuple[type, ...], Any]] = {
    "task": ((dict,), ...),
    "train_data": ((dict,), None),
    "val_data": ((dict, NONE), None),
    "test_data": ((dict, NONE), None),
    "collate": ((dict,), None),
    "optimizer": ((dict,), {"type": "AdamW", "lr": 1e-4}),
    "schedule": (
        (dict,),
        {"type": "constant", "warmup": 0, "warmup_full": False, "min_ratio": 0.0, "milestones": (), "gamma": 0.1},
    ),
    "batch_size": ((int,), 1),
    "accumulate": ((int,), 1),
    "max_steps": ((int, NONE), None),
    "epochs": ((*NUMBER, NONE), None),
    "precision": ((str,), "fp32"),
    "strategy": ((str,), "auto"),
    "context_parallel": ((int,), 1),
    "checkpoint": ((dict,), {"interval": 500, "keep": 3, "weights": "all", "background": False, "sharded": False}),
    "log": ((dict,), {"interval": 10, "to": (), "curves": True}),
    "validate_interval": ((int,), 0),
    "validate_samples": ((int,), 16),
    "validate_batches": ((int,), 50),
    "seed": ((int,), 0),
    "work_dir": ((str, NONE), None),
    "clip": ((*NUMBER, NONE), None),
    "ema": ((*NUMBER, NONE), None),
    "compile": ((bool, str), False),
    "gradient_checkpointing": ((bool,), False),
    "num_workers": ((int,), 0),
    "device": ((str,), "auto"),
    "guards": (
        (dict,),
        {
            "max_bad_steps": 10,
            "max_broken": 100,
            "max_worker_restarts": 3,
            "worker_timeout_s": 600,
            "hang_timeout_s": 1800,
            "constant_loss_steps": 50,
        },
    ),
    "hooks": ((list, tuple), ()),
    "load_from": ((str, dict, NONE), None),
    "test_batch_size": ((int,), 4),
    "overlay_cases": ((int,), 12),
    "custom_imports": ((dict, NONE), None),
    "grid": ((dict, NONE), None),
    "default_scope": ((str, NONE), None),
}
OPEN = {"task", "train_data", "val_data", "test_data", "collate", "optimizer", "custom_imports", "grid"}
WORDS = {
    "precision": ("fp32", "bf16", "fp16"),
    "strategy": ("auto", "single", "ddp", "fsdp2", "tp", "zero1", "zero2", "zero3"),
    "schedule.type": ("constant", "linear", "cosine", "multistep"),
    "checkpoint.weights": ("all", "trainable"),
}


#: Steps of a run whose config gives neither `max_steps` nor `epochs`.
DEFAULT_STEPS = 1000
#: Old spelling -> new one of dotted keys; both are understood, the old one with one warning.
RENAMED = {
    "task.learn": "task.trainable",
    "guards.max_worker_deaths": "guards.max_worker_restarts",
}
#: Old spelling -> new one of the `type` of hooks.
RENAMED_HOOKS = {"TugOfWarHook": "GradientConflictHook"}


def load_config(source: str | Path | Mapping | Config, options: Mapping[str, Any] | None = None) -> Config:
    """Read, merge and check a config.

    Args:
        source: path of a python config, a mapping, or a Config.
        options: dotted keys that replace values, as of `--cfg-options`.

    Returns:
        a Config in which every known key has a value.

    Raises:
        ConfigError: the file is missing or cannot be run, or a key is unknown, missing, or of the wrong type.
    """
    filename = None
    if isinstance(source, (str, Path)):
        values, filename = read_file(source), str(source)
    elif isinstance(source, Config):
        values, filename = source.to_dict(), source.filename
    else:
        values = dict(source)
    options = renamed(options or {}, "--cfg-options") if options else {}
    _refuse([key for key in options if key.split(".")[0] not in KEYS], KEYS, "--cfg-options")
    values = apply_options(renamed(values, filename or "config"), options)
    for one, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if options.get(one) is not None and other not in options:
            values[other] = None
    config = as_config(values, filename)
    name = filename or "config"
    _import_custom(config.get("custom_imports"), name)
    keys = [key for key in config if not key.startswith("_")]
    _refuse([key for key in keys if key not in KEYS], KEYS, name)
    for key, (types, default) in KEYS.items():
        if key not in config:
            if default is ...:
                raise ConfigError(f"{name}: the key {key!r} is missing")
            config[key] = dict(default) if isinstance(default, dict) else default
        value = config[key]
        if isinstance(value, bool) and bool not in types or (value is not None and not isinstance(value, types)):
            allowed = " or ".join(t.__name__ for t in types if t is not NONE)
            raise ConfigError(f"{name}: {key} must be {allowed}, got {value!r}")
        if isinstance(default, dict) and key not in OPEN:
            inside: Any = config[key]
            _refuse([k for k in inside if k not in default], default, f"{name}: {key}")
            for inner, given in inside.items():
                _check_type(f"{name}: {key}.{inner}", given, default[inner])
            config[key] = {**default, **inside}
    for key, words in WORDS.items():
        outer, _, inner = key.partition(".")
        value = config[outer][inner] if inner else config[outer]
        if value not in words:
            raise ConfigError(f"{name}: {key}={value!r}{did_you_mean(value, words)} Valid choices: {list(words)}")
    if config["epochs"] is not None and config["max_steps"] is not None:
        raise ConfigError(f"{name}: max_steps and epochs are both given; set the inherited one to None")
    if config["epochs"] is None and config["max_steps"] is None:
        config["max_steps"] = DEFAULT_STEPS
    if config["epochs"] is not None and config["epochs"] <= 0:
        raise ConfigError(f"{name}: epochs must be more than 0, got {config['epochs']}")
    for key in ("batch_size", "accumulate", "max_steps", "test_batch_size", "context_parallel"):
        if config[key] is not None and config[key] < 1:
            raise ConfigError(f"{name}: {key} must be at least 1, got {config[key]}")
    return config


def renamed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values with today's spelling of every key in `RENAMED`; keys may be dotted, as options are, or nested.

    An old spelling is the user's own (shipped files use the new one), so it takes the place of the new one.
    """
    values = dict(values)
    for old, new in RENAMED.items():
        outer, _, inner = old.rpartition(".")
        if old in values:
            values[new] = values.pop(old)
        elif isinstance(values.get(outer), Mapping) and inner in values[outer]:
            content = dict(values[outer])
            content[new.rpartition(".")[2]] = content.pop(inner)
            values[outer] = content
        else:
            continue
        warn_once(f"{where}: {old} is called {new} now")
    if isinstance(values.get("hooks"), list | tuple):
        values["hooks"] = [_renamed_hook(hook, where) for hook in values["hooks"]]
    return values


def _renamed_hook(hook, where: str):
    if not isinstance(hook, Mapping) or hook.get("type") not in RENAMED_HOOKS:
        return hook
    new = RENAMED_HOOKS[hook["type"]]
    warn_once(f"{where}: the hook {hook['type']} is called {new} now")
    return {**hook, "type": new}


def _import_custom(entry: Mapping | None, name: str) -> None:
    """Import the modules of `custom_imports=dict(imports=[...])`, from PYTHONPATH or from beside the config."""
    folder = str(Path(name).absolute().parent)
    if entry and name.endswith(".py") and folder not in sys.path:
        # Kept for the whole process: what is pickled later is looked up by the name of its module.
        sys.path.append(folder)
    entry = entry or {}
    for module in entry.get("imports") or []:
        try:
            importlib.import_module(module)
        except ImportError as error:
            if entry.get("allow_failed_imports"):
                continue
            raise ConfigError(
                f"{name}: custom_imports: {module} cannot be imported ({error}); "
                "put it beside the config, or set PYTHONPATH to its folder"
            ) from error


def _check_type(where: str, value, default) -> None:
    """An inner value is of the type of its default; where that is a number, any number."""
    if isinstance(default, (tuple, list)):
        fits, wanted = isinstance(value, (tuple, list)), "a list"
    elif isinstance(default, (bool, str)):
        fits, wanted = isinstance(value, type(default)), type(default).__name__
    else:
        fits, wanted = isinstance(value, NUMBER) and not isinstance(value, bool), "a number"
    if not fits:
        raise ConfigError(f"{where} must be {wanted}, got {value!r}")


def _refuse(unknown, choices, where: str) -> None:
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}{did_you_mean(unknown[0], choices)} Valid keys: {sorted(choices)}"
        )


__all__ = ["ConfigError", "KEYS", "load_config", "parse_options", "renamed"]

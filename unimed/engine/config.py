"""Configs: mmengine python files with `_base_`, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from unimed.registry import did_you_mean

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
    "max_steps": ((int,), 1000),
    "precision": ((str,), "fp32"),
    "strategy": ((str,), "auto"),
    "checkpoint": ((dict,), {"interval": 500, "keep": 3, "weights": "all", "background": False}),
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
    "guards": ((dict,), {"max_bad_steps": 10, "max_broken": 100, "max_worker_deaths": 3, "constant_loss_steps": 50}),
    "hooks": ((list, tuple), ()),
    "load_from": ((str, dict, NONE), None),
    "test_batch_size": ((int,), 4),
    "overlay_cases": ((int,), 12),
    "custom_imports": ((dict, NONE), None),
    "default_scope": ((str, NONE), None),
}
OPEN = {"task", "train_data", "val_data", "test_data", "collate", "optimizer", "custom_imports"}
WORDS = {
    "precision": ("fp32", "bf16", "fp16"),
    "strategy": ("auto", "single", "ddp", "fsdp2", "zero1", "zero2", "zero3"),
    "schedule.type": ("constant", "linear", "cosine", "multistep"),
    "checkpoint.weights": ("all", "trainable"),
}


class ConfigError(ValueError):
    """A config key that is unknown, missing, or of the wrong type."""


def load_config(source: str | Path | Mapping | Config, options: Mapping[str, Any] | None = None) -> Config:
    """Read, merge and check a config.

    Args:
        source: path of a python config, a mapping, or a Config.
        options: dotted keys that replace values, as of `--cfg-options`.

    Returns:
        a Config in which every known key has a value.

    Raises:
        ConfigError: the file is missing, or a key is unknown, missing, or of the wrong type.
    """
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise ConfigError(f"config {source} does not exist")
        config = Config.fromfile(str(source))
    else:
        config = Config(dict(source)) if not isinstance(source, Config) else source.copy()
    if options:
        unknown = [key for key in options if key.split(".")[0] not in KEYS]
        _refuse(unknown, KEYS, "--cfg-options")
        config.merge_from_dict(dict(options))
    name = config.filename or "config"
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
            _refuse([k for k in value if k not in default], default, f"{name}: {key}")
            for inner, given in value.items():
                _check_type(f"{name}: {key}.{inner}", given, default[inner])
            config[key] = {**default, **value}
    for key, words in WORDS.items():
        outer, _, inner = key.partition(".")
        value = config[outer][inner] if inner else config[outer]
        if value not in words:
            raise ConfigError(f"{name}: {key}={value!r}{did_you_mean(value, words)} Valid choices: {list(words)}")
    for key in ("batch_size", "accumulate", "max_steps"):
        if config[key] < 1:
            raise ConfigError(f"{name}: {key} must be at least 1, got {config[key]}")
    return config


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

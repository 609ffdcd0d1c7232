"""`load`: find out what a path is, and build it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from unimed.layouts import LAYOUTS
from unimed.models import foreign
from unimed.models.checkpoints.cache import converted
from unimed.models.families import register

#: Types of numbers a model can be loaded in.
DTYPES = ("auto", "float32", "bfloat16", "float16")


class LoadError(ValueError):
    """A path that holds no model we know."""


def load(path, device: str = "auto", dtype: str = "auto", calibration=None):
    """A model ready to predict.

    Args:
        path: a folder written by `save_pretrained`, `tools/export.py` or `tools/convert.py`; a published checkpoint of
            a known layout (converted once into the cache folder); a Hugging Face hub id of either, `OWNER/NAME` or
            `OWNER/NAME/FILE`; or `open_clip:NAME[/WEIGHTS]` or `hf-hub:OWNER/NAME` for a contrastive model in
            open_clip's layout.
        device: "auto" takes a GPU where there is one; otherwise a torch device.
        calibration: file written by `tools/calibrate.py` on held-out cases of this model; `confidence`, `box_std_px`
            and the outer and inner boxes of its regions are then calibrated numbers.
        dtype: "auto" keeps the type of the file; otherwise "float32", "bfloat16" or "float16".

    Raises:
        LoadError: nothing known is there, a GPU is asked for where there is none, or the model gives no boxes.
        WeightsError: a tensor is missing, left over or of another shape; each is named.
        ForeignError: a folder that cannot be opened without running code of it.
        CalibrationError: not a calibration file.
    """
    import torch

    chosen = device_of(device)
    if dtype not in DTYPES:
        raise LoadError(f"dtype {dtype!r} is not known; choose one of: {', '.join(DTYPES)}")
    options = {"dtype": "auto" if dtype == "auto" else getattr(torch, dtype)}
    register()
    if str(path).startswith(("open_clip:", "hf-hub:")):
        from unimed.models.checkpoints.open_clip_names import load_named

        path = load_named(str(path))
        if isinstance(path, torch.nn.Module):
            return (path if dtype == "auto" else path.to(options["dtype"])).to(chosen).eval()
    source = source_of(path)
    if not _is_ours(source):
        source = _converted(source)
    model = _open(source, options)
    if calibration is not None:
        from unimed.metrics.calibration import Calibration

        if not hasattr(model, "calibration"):
            raise LoadError(f"{path}: a {type(model).__name__} gives nothing to calibrate")
        model.calibration = Calibration.load(calibration)
    return model.to(chosen).eval()


def source_of(path) -> Path:
    """A file or folder here, or what was fetched of the hub (no Python files): `OWNER/NAME` or `OWNER/NAME/FILE`.

    Raises:
        LoadError: neither.
    """
    source = Path(path)
    if source.exists():
        return source
    try:
        if (file := foreign.hub_file(str(path))) is not None:
            return file
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} is no file here, and cannot be had from the hub: {error}") from error
    if os.sep in str(path).strip(os.sep) and str(path).count("/") != 1:
        raise LoadError(f"{path} does not exist")
    if source.parent != Path(".") and source.parent.is_dir():
        # Asking the hub would take a minute of retries without a network, and this is most likely a slip of the pen.
        there = ", ".join(sorted(p.name for p in source.parent.iterdir())[:8]) or "nothing"
        raise LoadError(
            f"{path} is no folder here; {source.parent} holds: {there}. A model of the hub has to be downloaded first"
        )
    try:
        return foreign.folder_of(path, weights=True)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} is no folder here, and no model of that name can be had from the hub") from error


def _open(source: Path, options: dict):
    """The model of a folder of ours, or of one that transformers knows; by its type, never by code it names."""
    from transformers import MODEL_MAPPING, AutoModel

    settings = foreign.config(source)
    kind: Any = MODEL_MAPPING[type(settings)] if type(settings) in MODEL_MAPPING else AutoModel
    if kind is not AutoModel and kind.__module__.startswith("unimed."):
        return kind.from_pretrained(source, **options)
    return foreign.model(AutoModel, source, **options)


def device_of(device: str):
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise LoadError(f"device {device!r} is not known; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device {device!r} was asked for, but no CUDA device is there; use device='cpu' or 'auto'")
    return chosen


def _is_ours(source: Path) -> bool:
    from transformers import CONFIG_MAPPING

    config = source / "config.json"
    if not config.is_file():
        return False
    kind = str(foreign.read_json(config).get("model_type", ""))
    return kind.startswith("unimed_") or (kind in CONFIG_MAPPING and _recognized(source) is None)


def _calls_itself(source: Path) -> str:
    """What the config.json of a folder says it is, for a message."""
    config = source / "config.json"
    kind = foreign.read_json(config).get("model_type") if config.is_file() else None
    return f" (its config.json says model_type {kind!r})" if kind else ""


def _recognized(source: Path):
    for layout, module_name in LAYOUTS.items():
        if importlib.util.find_spec(module_name) is None:
            continue
        module = importlib.import_module(module_name)
        if module.recognises(source):
            return layout, module
    return None


def _converted(source: Path) -> Path:
    found = _recognized(source)
    if found is None:
        raise LoadError(
            f"{source}: neither a folder of ours nor a published layout{_calls_itself(source)}; "
            f"known are {', '.join(LAYOUTS)}"
        )
    return converted(source, *found)

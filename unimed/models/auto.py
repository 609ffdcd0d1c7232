"""`load`: find out what a path is, and build it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

from unimed.models.checkpoints import LAYOUTS
from unimed.models.families import register


class LoadError(ValueError):
    """A path that holds no model we know."""


def load(path, device: str = "auto", dtype: str = "auto", calibration=None):
    """A model ready to predict.

    Args:
        path: a folder written by `save_pretrained`, `tools/export.py` or `tools/convert.py`; a published checkpoint of
            a known layout (converted once into the cache folder); a Hugging Face hub id of one of our folders; or
            `open_clip:NAME[/WEIGHTS]` or `hf-hub:OWNER/NAME` for a contrastive model in open_clip's layout.
        device: "auto" takes a GPU where there is one; otherwise a torch device.
        calibration: file written by `tools/calibrate.py` on held-out cases of this model; `confidence`, `box_std_px`
            and the outer and inner boxes of its regions are then calibrated numbers.
        dtype: "auto" keeps the type of the file; otherwise "float32", "bfloat16" or "float16".

    Raises:
        LoadError: nothing known is there, a GPU is asked for where there is none, or the model gives no boxes.
        CalibrationError: not a calibration file.
    """
    import torch

    chosen = _device(device)
    options = {"dtype": "auto" if dtype == "auto" else getattr(torch, dtype)}
    register()
    if str(path).startswith(("open_clip:", "hf-hub:")):
        from unimed.models.checkpoints.open_clip_names import load_named

        path = load_named(str(path))
        if isinstance(path, torch.nn.Module):
            return (path if dtype == "auto" else path.to(options["dtype"])).to(chosen).eval()
    source = Path(path)
    if source.exists() and not _is_ours(source):
        source = _converted(source)
    elif not source.exists() and (os.sep in str(path).strip(os.sep) and str(path).count("/") != 1):
        raise LoadError(f"{path} does not exist")
    elif not source.exists() and source.parent != Path(".") and source.parent.is_dir():
        # Asking the hub would take a minute of retries without a network, and this is most likely a slip of the pen.
        there = ", ".join(sorted(p.name for p in source.parent.iterdir())[:8]) or "nothing"
        raise LoadError(
            f"{path} is no folder here; {source.parent} holds: {there}. A model of the hub has to be downloaded first"
        )
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(source if source.exists() else str(path), **options)
    except OSError as error:
        if source.exists():
            raise
        raise LoadError(f"{path} is no folder here, and no model of that name can be had from the hub") from error
    if calibration is not None:
        from unimed.metrics.calibration import Calibration

        if not hasattr(model, "calibration"):
            raise LoadError(f"{path}: a {type(model).__name__} gives no boxes to calibrate")
        model.calibration = Calibration.load(calibration)
    return model.to(chosen).eval()


def _device(device: str):
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"device {device!r} was asked for, but no CUDA device is there; use device='cpu' or 'auto'")
    return chosen


def _is_ours(source: Path) -> bool:
    from transformers import CONFIG_MAPPING

    config = source / "config.json"
    if not config.is_file():
        return False
    kind = json.loads(config.read_text()).get("model_type", "")
    return kind.startswith("unimed_") or (kind in CONFIG_MAPPING and _recognised(source) is None)


def _recognised(source: Path):
    for layout, module_name in LAYOUTS.items():
        if importlib.util.find_spec(module_name) is None:
            continue
        module = importlib.import_module(module_name)
        if module.recognises(source):
            return layout, module
    return None


def _converted(source: Path) -> Path:
    found = _recognised(source)
    if found is None:
        raise LoadError(f"{source}: neither a folder of ours nor a published layout; known are {', '.join(LAYOUTS)}")
    layout, module = found
    stamp = f"{source.resolve()}:{source.stat().st_mtime_ns}:{layout}"
    root = Path(os.environ.get("UNIMED_CACHE") or Path.home() / ".cache" / "unimed")
    target = root / "converted" / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    if not (target / "config.json").is_file():
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        module.convert(source, partial)
        partial.rename(target)
    return target

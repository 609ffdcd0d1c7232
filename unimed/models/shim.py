"""The few lines in a saved folder that let transformers open it without `import unimed` (`trust_remote_code=True`)."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "unimed_shim.py"
_HEAD = '"""Opens this folder through the installed package `unimed`; no model code lies here."""\n\n'


def write_shim(folder, model, processor=None) -> None:
    """Write the shim of a saved model and name it in its config.json.

    Args:
        folder: where `save_pretrained` has written `model`.
        processor: class of its processor, where transformers' `AutoProcessor` can open it.
    """
    folder = Path(folder)
    kinds = {"AutoConfig": type(model.config), "AutoModel": type(model)}
    if processor is not None:
        kinds["AutoProcessor"] = processor
    lines = sorted(f"from {kind.__module__} import {kind.__name__}" for kind in kinds.values())
    names = ", ".join(f'"{kind.__name__}"' for kind in kinds.values())
    (folder / FILE).write_text(_HEAD + "\n".join(lines) + f"\n\n__all__ = [{names}]\n", encoding="utf-8")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stem = FILE.removesuffix(".py")
    settings["auto_map"] = {auto: f"{stem}.{kind.__name__}" for auto, kind in kinds.items()}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

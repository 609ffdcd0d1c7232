"""The few lines in a saved folder that let transformers open it without `import unimed` (`trust_remote_code=True`)."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "unimed_shim.py"
_LINES = '''"""Opens this folder through the installed package `unimed`; no model code lies here."""

from {config_module} import {config}
from {model_module} import {model}

__all__ = ["{config}", "{model}"]
'''


def write_shim(folder, model) -> None:
    """Write the shim of a saved model and name it in its config.json.

    Args:
        folder: where `save_pretrained` has written `model`.
    """
    folder = Path(folder)
    kind, config_kind = type(model), type(model.config)
    names = dict(config=config_kind.__name__, model=kind.__name__)
    modules = dict(config_module=config_kind.__module__, model_module=kind.__module__)
    (folder / FILE).write_text(_LINES.format(**names, **modules), encoding="utf-8")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stem = FILE.removesuffix(".py")
    settings["auto_map"] = {"AutoConfig": f"{stem}.{names['config']}", "AutoModel": f"{stem}.{names['model']}"}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

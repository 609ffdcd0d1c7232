"""`tools/convert.py` called in process."""

import importlib.util
from pathlib import Path


def convert_tool(*arguments):
    path = Path(__file__).parents[3] / "tools" / "convert.py"
    spec = importlib.util.spec_from_file_location("convert_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])

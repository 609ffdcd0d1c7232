"""Makes the tiny task of these tests known to the registries."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load(name, path):
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny():
    return load("engine_tiny", Path(__file__).parent / "tiny.py")

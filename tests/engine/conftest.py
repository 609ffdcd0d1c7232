"""Makes the tiny task of these tests known to the registries."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


@pytest.fixture(scope="session")
def parallel_runs(tmp_path_factory):
    """The folder of runs of one and of several ranks, see parallel_worlds.py; made once, for all tests that compare."""
    import torch

    folder = tmp_path_factory.mktemp("parallel")
    path = os.pathsep.join(str(ROOT / part) for part in ("", "tests/engine", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "engine" / "parallel_worlds.py", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    printed = "".join(file.read_text()[-3000:] for file in (folder / "output").rglob("*.txt"))
    assert done.returncode == 0, done.stderr[-3000:]
    codes = torch.load(folder / "done.pt")["codes"]
    assert set(codes) == {0}, printed
    return folder

"""Real runs that are asked to stop save, whoever is asked: one process, a launcher with ranks, all of a Slurm job."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("how", "name"), [("single", "SIGINT"), ("ranks", "SIGUSR1"), ("slurm", "SIGUSR1")])
def test_a_run_that_is_asked_to_stop_saves(tmp_path, how, name):
    specification = importlib.util.spec_from_file_location("signals", Path(__file__).parent / "signals.py")
    signals = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(signals)
    assert signals.stop_one(tmp_path / "run", how, name) == ""

"""A few hundred damaged files; `python tests/io/fuzz.py 5000` tries more."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules["fuzz"] = module
    specification.loader.exec_module(module)
    return module


def test_a_damaged_file_is_an_error_or_read_right(tmp_path, script):
    table, others = script.fuzz(tmp_path, 230, seed=11)
    assert others == []
    assert all(sum(counts.values()) == 230 // len(table) for counts in table.values())
    assert sum(counts["error"] for counts in table.values()) > 100  # the faults are faults


def test_the_script_notices_what_is_silently_different(tmp_path, script, monkeypatch):
    real = script.read

    def careless(path, **options):
        try:
            return real(path, **options)
        except script.ReadError:
            array, geometry = last[0]
            return array + 1, geometry

    sound = script.sound_files(tmp_path)[0]
    last = [real(sound.open)]
    monkeypatch.setattr(script, "read", careless)
    assert script.outcome(sound, sound.data[:-9], len(sound.data) - 9) == (
        "other",
        "silently different under a checksum",
    )
    monkeypatch.setattr(script, "read", lambda path, **options: 1 / 0)
    assert script.outcome(sound, sound.data, 0)[0] == "other"

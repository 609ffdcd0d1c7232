"""The volume benchmark runs from end to end on a small model."""

import importlib.util
from pathlib import Path

from unimed.models.starting.boltzformer import build_small

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_volume.py"


def test_speed_and_memory(tmp_path, capsys, monkeypatch):
    build_small(["target"], image_size=64).save_pretrained(tmp_path)
    specification = importlib.util.spec_from_file_location("benchmark_volume", TOOL)
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    monkeypatch.setattr(tool, "CLASSES", 1)
    common = [str(tmp_path), "--side", "64", "--slices"]
    assert tool.main(["speed", *common, "2", "--bfloat16"]) == 0
    table = capsys.readouterr().out
    assert "| slices | prompts | reference_s |" in table and "| 2      | 2       |" in table
    assert tool.main(["one", *common, "40", "--repeat-outputs"]) == 0
    assert 0.1 < float(capsys.readouterr().out.split()[-1]) < 20

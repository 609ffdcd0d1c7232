"""The volume benchmark runs from end to end on a small model."""

from unimed.commands import speed_volumes as tool
from unimed.models.starting.boltzformer import build_small


def test_speed_and_memory(tmp_path, capsys, monkeypatch):
    build_small(["target"], image_size=64).save_pretrained(tmp_path)
    monkeypatch.setattr(tool, "CLASSES", 1)
    common = [str(tmp_path), "--side", "64", "--slices"]
    assert tool.speed_volumes(["speed", *common, "2", "--bfloat16"]) == 0
    table = capsys.readouterr().out
    assert "| slices | prompts | reference_s |" in table and "| 2      | 2       |" in table
    assert tool.speed_volumes(["one", *common, "40", "--repeat-outputs"]) == 0
    assert 0.1 < float(capsys.readouterr().out.split()[-1]) < 20

"""The benchmark of text-prompted slices runs and adds up."""

import importlib.util
from pathlib import Path

from unimed.models.boltzformer.small import build_small


def test_on_a_small_model(tmp_path, capsys):
    path = Path(__file__).parents[2] / "tools" / "benchmark_parse.py"
    spec = importlib.util.spec_from_file_location("benchmark_parse", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build_small(["liver"], image_size=64).save_pretrained(tmp_path)
    assert module.main([str(tmp_path), "--repeat", "1", "--depths", "1", "8"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1 ", "| 8 "))]
    assert len(rows) == 2
    # The dead class names are the same work whatever the depth, so their share falls.
    assert float(rows[0][5]) > float(rows[1][5]) > 0

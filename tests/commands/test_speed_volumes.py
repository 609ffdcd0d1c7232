"""The volume benchmark runs from end to end on a small model."""

from unimed.commands import speed_volumes as tool
from unimed.models.starting.boltzformer import build_small


def test_speed_and_memory(tmp_path, capsys, monkeypatch):
    build_small(["target"], image_size=64).save_pretrained(tmp_path)
    monkeypatch.setattr(tool, "CLASSES", 1)
    common = [str(tmp_path), "--side", "64", "--slices"]
    assert tool.speed_volumes(["speed", *common, "9", "--stride", "3", "--crop", "--bfloat16", "--turns", "1"]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in line[1:-1]] for line in lines]
    table = {row[2]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(table) == ["published", "every slice", "--stride 3", "--stride 3 --crop", "every slice, bfloat16"]
    # Targets are in the slices 3 to 5: 0, 3, 6 and 8 first, 1 and 2 for the one border, 4 and 5 for the other.
    assert [row["looked_at"] for row in table.values()] == ["9", "9", "8", "8", "9"]
    assert table["--stride 3"]["dice"] == table["every slice"]["dice"] == "1.00"
    assert all(
        float(row["share_of_matrix_peak"]) > 0 for name, row in table.items() if name in ("every slice", "--stride 3")
    )
    assert tool.speed_volumes(["one", *common, "40", "--repeat-outputs"]) == 0
    assert 0.1 < float(capsys.readouterr().out.split()[-1]) < 20

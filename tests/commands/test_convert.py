"""`tools/convert.py` as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

YAML = """
model:
  arch: uni_med
  llm_model_path: pretrained/Llama-2-7b-chat-hf
  projector_type: linear
datasets:
  path_vqa:
    batch_size: 2
run:
  max_epoch: 1
"""


def convert(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "convert.py"), *map(str, arguments)], capture_output=True, text=True
    )


def test_a_yaml_becomes_a_config(tmp_path):
    (tmp_path / "train.yaml").write_text(YAML)
    done = convert("--from", "uni_med_yaml", tmp_path / "train.yaml", tmp_path / "train.py", "--data-root", "elsewhere")
    assert done.returncode == 0, done.stderr
    assert "elsewhere" in (tmp_path / "train.py").read_text()
    again = convert("--from", "uni_med_yaml", tmp_path / "train.yaml", tmp_path / "train.py")
    assert again.returncode == 1 and "already there" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "unibiomd", "a", "b"), "unknown layout 'unibiomd'; did you mean 'unibiomed'? known are unibiomed"),
        (("--from", "uni_med_yaml", "nothing.yaml", "b"), "nothing.yaml: no such file"),
        (("--from", "umedground", "nothing.bin", "b"), "nothing.bin: no such file"),
    ],
)
def test_refused(arguments, message):
    done = convert(*arguments)
    assert done.returncode != 0 and message in done.stderr


def test_help_of_a_layout_shows_its_options():
    assert "--llama" in convert("--from", "uni_med", "--help").stdout


def test_a_hub_id_stands_in_place_of_a_file(tmp_path, monkeypatch, capsys):
    from models.clip.recorded import FOLDER

    from unimed.commands.convert import convert as verb
    from unimed.models import foreign

    monkeypatch.setattr(
        foreign, "hub_file", lambda name: FOLDER / "model" / "train_checkpoint.pt" if "/" in name else None
    )
    monkeypatch.chdir(tmp_path)
    assert verb(["--from", "unimed_clip", "UzairK/unimed-clip-vit-b16", "out"]) == 0
    assert "84 entries" in capsys.readouterr().out and (tmp_path / "out" / "model.safetensors").is_file()
    monkeypatch.setattr(foreign, "hub_file", lambda name: None)
    monkeypatch.setattr(foreign, "folder_of", lambda *_, **__: pytest.fail("asked the hub"))
    assert verb(["--from", "unimed_clip", "gone.pt", "other"]) == 1 and "gone.pt" in capsys.readouterr().err
    assert verb(["--from", "unimed_clip", "nowhere/gone.pt", "other"]) == 1
    error = capsys.readouterr().err
    assert "nowhere/gone.pt" in error and error.count("\n") == 1

import json
import signal

import numpy as np
import pytest
from PIL import Image
from small_models import tiny_model  # noqa: E402

from unimed.commands import cli
from unimed.commands.cli import main


def test_a_second_interruption_ends_the_command_with_130(monkeypatch):
    ended = []
    monkeypatch.setattr(cli.os, "_exit", ended.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cli._end_at_a_second_interruption()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not ended
        signal.raise_signal(signal.SIGINT)
        assert ended == [130]
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
        cli._end_at_a_second_interruption()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_predict_writes_json_and_picture(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "case.png")
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "case.png"), "what", "where"]
    assert main([*arguments, "--out", str(out), "--max-new-tokens", "3"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["case-0.json", "case-0.png", "case-1.json", "case-1.png"]
    assert json.loads((out / "case-0.json").read_text())["notice"] == "research use only"
    assert str(out / "case-1.png") in capsys.readouterr().out


def test_errors_are_one_line_and_the_exit_code_is_one(tmp_path, capsys):
    assert main(["predict", str(tmp_path), str(tmp_path / "missing.png"), "what"]) == 1
    assert "missing.png" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.py"), "x", str(tmp_path)]) == 1


def test_predict_compares_labels_with_a_contrastive_model(tmp_path, capsys):
    from models.clip.recorded import FOLDER, converted

    from unimed.commands.cli import main

    picture = str(FOLDER / "pictures" / "rgb.png")
    assert main(["predict", str(converted(tmp_path)), picture, "lung", "heart", "--device", "cpu"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if "  " in line]
    assert {label for _, label in lines} == {"lung", "heart"} and sum(float(p) for p, _ in lines) > 0.99


def test_predict_runs_on_a_model_that_writes_no_text(tmp_path, capsys):
    from PIL import Image

    from unimed.models.starting.boltzformer import build_small

    build_small(image_size=64).save_pretrained(tmp_path / "model")
    Image.new("RGB", (40, 30), "gray").save(tmp_path / "picture.png")
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "picture.png"), "liver", "--out", str(out)]
    assert main([*arguments, "--device", "cpu"]) == 0, capsys.readouterr().err
    assert (out / "picture-0.json").is_file()


def test_no_patient_and_no_user_in_what_is_printed_and_written(tmp_path, capfd, caplog):
    import pydicom
    from pydicom.data import get_testdata_file

    source = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    source.PatientName, source.PatientID, source.PatientBirthDate = "SECRET^Name", "SECRET-ID", "19010203"
    home = tmp_path / "home of somebody"
    home.mkdir()
    source.save_as(home / "image.dcm")
    broken = bytearray((home / "image.dcm").read_bytes())[:-2000]
    (home / "broken.dcm").write_bytes(broken)
    tiny_model().save_pretrained(home / "model")
    out = tmp_path / "out"
    options = ["what is it", "--out", str(out), "--max-new-tokens", "3"]
    assert main(["predict", str(home / "model"), str(home / "image.dcm"), *options]) == 0
    assert main(["predict", str(home / "model"), str(home / "broken.dcm"), *options]) == 1
    printed = capfd.readouterr()
    told = printed.out + caplog.text + "".join(p.read_text(errors="replace") for p in out.rglob("*.json"))
    assert "somebody" not in told, "folders tell of a user"
    for word in ("SECRET", "19010203"):
        assert word not in told + printed.err


def test_the_text_of_a_model_is_no_command_of_the_terminal(tmp_path, capsys, monkeypatch):
    from unimed.io.result import Prediction

    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "case.png")
    monkeypatch.setattr(type(model), "predict", lambda *_, **__: [Prediction("a\x1b[2Jb\rc\u202e <b>")])
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "case.png"), "what", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("a[2Jb\nc <b>\n")

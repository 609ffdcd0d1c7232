"""`unimed train --data FOLDER`: a run on records without a config written."""

import json

import numpy as np
import pytest
from PIL import Image

from unimed.commands.own_data import options_for
from unimed.commands.training import train
from unimed.models.starting.grounded_small import build_tiny


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "mine"
    (folder / "records").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for n in range(4):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:14, 6:20] = 255
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(folder / f"i{n}.png")
        Image.fromarray(mask).save(folder / f"m{n}.png")
        region = {"phrase": "node", "mask": f"m{n}.png", "present": True}
        rows.append({"id": str(n), "task": "referring", "image": f"i{n}.png", "question": "Segment the node.",
                     "answer": "<p> node </p> [SEG].", "regions": [region], "patient_id": f"P{n}"})  # fmt: skip
    for split, part in (("train", rows[:3]), ("val", rows[3:]), ("test", [])):
        (folder / "records" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def test_a_run_from_a_given_start(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build_tiny(["Segment the node."]).save_pretrained("start")
    options = ["device=cpu", "max_steps=2", "batch_size=2", "num_workers=0"]
    arguments = ["--data", str(data), "--start", "start", "--cfg-options", *options]
    assert train(arguments) == 0
    said = capsys.readouterr().out
    run = tmp_path / "work_dirs" / "mine"
    assert f"unimed test {run.relative_to(tmp_path)}/config.py" in said or f"unimed test {run}/config.py" in said
    assert list((run / "checkpoints").glob("step_*"))
    # Started again it goes on, with the same words.
    assert train([*arguments[:4], "--resume", "auto", "--cfg-options", *options, "max_steps=3"]) == 0
    assert (run / "checkpoints" / "step_00000003").is_dir()


def test_options_name_what_is_there(data):
    config, work_dir, options = options_for(str(data), "start")
    assert (config, work_dir) == ("configs/quickstart/own_data.py", "work_dirs/mine")
    assert options["val_data.path"] == str(data) and options["test_data"] is None
    assert options["task.model"] == "start" and "train_data.slices" not in options
    rows = [json.loads(line) for line in (data / "records" / "train.jsonl").read_text().splitlines()]
    rows[0]["volume"], rows[0]["task"] = rows[0].pop("image"), "volume"
    (data / "records" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert options_for(str(data), "start")[2]["train_data.slices"] > 0


def test_patients_in_several_splits_and_empty_splits_are_told(data, capsys):
    options_for(str(data), "start")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no record is in test; there is nothing for `unimed test`" in said[0]
    lines = (data / "records" / "train.jsonl").read_text().splitlines()
    for split, shared in (("val", lines[:1]), ("test", lines[:2])):
        rows = [json.dumps(json.loads(line) | {"id": f"{split}{n}"}) + "\n" for n, line in enumerate(shared)]
        (data / "records" / f"{split}.jsonl").write_text("".join(rows))
    options_for(str(data), "start")
    (told,) = capsys.readouterr().err.splitlines()
    assert "2 patients are in several splits" in told and "test: record test0" in told and "--patient-pattern" in told
    assert "P0" not in told  # ids of patients are nobody's business in a terminal


def test_mistakes_are_one_line(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["--data", "nowhere", "--start", "x"], "nowhere"),
        (["--data", str(data), "--start", "nowhere"], "nowhere"),
    ):
        assert train(arguments) == 1
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
    for arguments in ([], ["--start", "x", "config.py"]):
        with pytest.raises(SystemExit) as stop:
            train(arguments)
        assert stop.value.code == 1

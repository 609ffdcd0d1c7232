"""`unimed card` and `unimed prepare card`: every part with its license, the strictest named, measured tables."""

import json

import pytest

from unimed.commands.cli import main
from unimed.data.licenses import Source, write_sources
from unimed.engine.exporting import sources_of


@pytest.fixture
def folder(tmp_path):
    """What `card` reads of a model, without its weights."""
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "unimed_grounded"}))
    write_sources(
        model, [Source("mask decoder", "a.pt", "Apache-2.0"), Source("training data", "mine", "CC BY-NC 4.0")]
    )
    return model


def front(text):
    from huggingface_hub import ModelCard

    return ModelCard(text).data.to_dict()


def test_parts_intended_use_and_what_a_test_measured(folder, tmp_path, capsys):
    test = tmp_path / "run" / "test"
    test.mkdir(parents=True)
    numbers = {"summary": {"mask/dice": 0.51234, "worst": float("nan")}, "tables": {"masks": []}}
    (test / "metrics.json").write_text(json.dumps(numbers))
    (test / "metrics.md").write_text(
        "### masks\n\n| dice |\n|---|\n| 0.512 [0.4, 0.6] |\n\n3 samples. Reproduce: `x /home/me`\n"
    )
    assert main(["card", str(folder), "--run", str(tmp_path / "run")]) == 0
    text = (folder / "README.md").read_text()
    assert str(folder / "README.md") in capsys.readouterr().out
    assert (
        "| training data | mine | CC BY-NC 4.0 |" in text
        and "**Strictest: CC BY-NC 4.0** (asks for no commercial" in text
    )
    assert "0.512 [0.4, 0.6]" in text and "/home/me" not in text and "| mask/dice | 0.5123 |" in text
    assert "Research use only" in text and "## Intended use" in text and "Not for:" in text
    told = front(text)
    assert told["license"] == "cc-by-nc-4.0" and told["library_name"] == "unimed"
    (result,) = told["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.51234]


def test_without_a_test_the_card_says_so_and_parts_can_be_added(folder, tmp_path):
    out = tmp_path / "card.md"
    assert main(["card", str(folder), "--part", "labels", "our set", "terms of ours", "--out", str(out)]) == 0
    text = out.read_text()
    assert "Nothing was measured" in text and "**Strictest: terms of ours** (asks for its terms to be found out" in text
    assert front(text)["license"] == "other" and front(text)["license_name"] == "terms of ours"
    assert "our set" in (folder / "sources.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"), [(["nowhere"], "no config.json"), (["mine", "--run", "x"], "no test/metrics")]
)
def test_what_is_missing_is_one_line(folder, words, message, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert main(["card", *words]) == 1
    assert message in capsys.readouterr().err and not (folder / "README.md").exists()


def test_a_folder_of_which_nothing_is_known_says_that(folder):
    (folder / "sources.json").unlink()
    assert main(["card", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert "Nobody wrote down" in text and front(text)["license"] == "other"


def test_sources_of_a_run_are_those_of_its_start_and_its_data(folder, tmp_path):
    records = tmp_path / "data" / "records"
    records.mkdir(parents=True)
    row = {"id": "a", "task": "vqa", "question": "?", "answer": "no", "image": "a.png", "license": "MIT"}
    (records / "train.jsonl").write_text(json.dumps(row) + "\n")
    data = {"type": "RecordDataset", "path": str(tmp_path / "data"), "split": "train"}
    settings = {
        "task": {"model": str(folder)},
        "train_data": {"mixture": [{"dataset": data}, {"dataset": data | {"tasks": ["vqa"]}}]},
    }
    found = sources_of(settings)
    assert [one.name for one in found] == ["a.pt", "mine", "data"] and found[-1].license == "MIT"
    settings["task"] = {"model": {"type": "TinyGroundedMLLM"}}
    assert sources_of(settings)[0].license == "none needed"


def test_a_data_card_counts_and_names_nobody(tmp_path, capsys):
    records = tmp_path / "set" / "records"
    records.mkdir(parents=True)
    row = {"task": "vqa", "question": "?", "answer": "no", "image": "a.png", "modality": "CT", "patient_id": "SECRET-7"}
    for part, license_text in (("train", "CC0-1.0"), ("test", "CC BY 4.0")):
        (records / f"{part}.jsonl").write_text(json.dumps(row | {"id": part, "license": license_text}) + "\n")
    assert main(["prepare", "card", str(tmp_path / "set"), "--description", "Ours."]) == 0
    text = (tmp_path / "set" / "README.md").read_text()
    assert "**1 patients are in several parts.**" in text and "SECRET" not in text
    assert "| vqa | 1 | 1 |" in text and "**Strictest: CC BY 4.0**" in text and "license: cc-by-4.0" in text
    assert main(["prepare", "card", str(tmp_path)]) == 1
    assert "holds no records" in capsys.readouterr().err

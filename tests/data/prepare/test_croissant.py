"""A prepared set as Croissant: files with digests, fields without patients; MLCommons' own reader takes it."""

import hashlib
import json

import pytest
from evaluation.harness import drawn

from unimed.commands.cli import main
from unimed.data.prepare.croissant import write_croissant
from unimed.data.readers.records import RecordError


@pytest.fixture
def data(tmp_path):
    return drawn.write(tmp_path / "mine", patients=2, test_patients=1)


def test_files_fields_and_licenses(data, capsys):
    assert main(["prepare", "croissant", str(data), "--license", "CC BY 4.0"]) == 0
    path = data / "croissant.json"
    assert capsys.readouterr().out.strip() == str(path)
    content = json.loads(path.read_text())
    assert content["name"] == "mine" and content["license"] == ["CC BY 4.0"]
    files = {one["name"]: one for one in content["distribution"]}
    assert set(files) == {"train.jsonl", "test.jsonl"}
    text = (data / "records/train.jsonl").read_bytes()
    assert files["train.jsonl"]["sha256"] == hashlib.sha256(text).hexdigest()
    fields = {field["name"] for part in content["recordSet"] for field in part["field"]}
    assert {"train/question", "test/image", "train/task"} <= fields and "patient" not in path.read_text()


def test_what_is_missing_is_named(data, tmp_path):
    with pytest.raises(RecordError, match="no record says its license"):
        write_croissant(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="holds no records"):
        write_croissant(tmp_path / "empty", license="MIT")


def test_the_reader_of_mlcommons_takes_it(data):
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=str(write_croissant(data, license="CC BY 4.0")))
    assert not dataset.metadata.ctx.issues.errors
    records = list(dataset.records("train"))
    assert len(records) == 10 and b"segment the lesion" in bytes(records[0]["train/question"])

"""Hostile pickles are named before they are opened, and never run, with and without the scanner."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from unimed import pickles
from unimed.commands.cli import main
from unimed.data.readers.umedground_formats import read_mrg
from unimed.data.readers.uni_med import FieldError, read_plain_pickle
from unimed.models.checkpoints.reading import CheckpointError, read_state_dict

pytest.importorskip("picklescan")
TENSORS = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}


class Command:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class Code(Command):
    def __reduce__(self):
        return eval, (f"open({str(self.mark)!r}, 'w')",)


class Hidden(Command):
    """By an attribute of a module that looks harmless."""

    def __reduce__(self):
        import importlib

        return importlib.import_module, ("this",)


def as_zip(value, path):
    torch.save(value, path)


def as_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


def as_cut_pickle(value, path):
    """What it names comes before the place where it breaks off, and would be run."""
    path.write_bytes(pickle.dumps([value, 1])[:-2])


def as_second_pickle(value, path):
    path.write_bytes(pickle.dumps([1]) + pickle.dumps(value))


def as_zip_without_data(value, path):
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            if "data.pkl" in name:
                copy.writestr(name, source.read(name))


WAYS = (as_zip, as_legacy, as_pickle, as_cut_pickle, as_second_pickle, as_zip_without_data)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", [Command, Code])
@pytest.mark.parametrize("scanned", [True, False])
def test_hostile_files_are_named_and_never_run(tmp_path, monkeypatch, way, kind, scanned):
    path, mark = tmp_path / "weights.pth", tmp_path / "ran"
    way(TENSORS | {"evil": kind(mark)}, path)
    if not scanned:
        monkeypatch.setenv("UNIMED_SCAN", "off")
    opened = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    with pytest.raises(CheckpointError, match=r"weights.pth") as raised:
        read_state_dict(path)
    assert bool(opened) is not scanned and not mark.exists() and "\n" not in str(raised.value)
    if scanned:
        assert "dangerous code (" in str(raised.value)
        assert {"posix.system", "nt.system", "builtins.eval", "__builtin__.eval"} & set(pickles.scan(path).dangerous)


@pytest.mark.parametrize("way", [as_zip, as_legacy])
def test_weights_pass_and_are_reported(tmp_path, way, caplog):
    path = tmp_path / "weights.pth"
    way(TENSORS, path)
    with caplog.at_level("INFO", logger="unimed.pickles"):
        assert read_state_dict(path).keys() == TENSORS.keys()
    assert "nothing but tensors and containers" in caplog.text
    report = pickles.scan(path)
    assert report.whole and not report.dangerous and not report.unknown and len(report.harmless) >= 3
    # With a learning rate of numpy, as training files have it: not known, and refused or allowed by the reader.
    way(TENSORS | {"lr": np.float64(0.1)}, path)
    assert any("scalar" in name for name in pickles.scan(path).unknown)


@pytest.mark.parametrize("name", ["weights.PTH", "weights", "pytorch_model.bin.old", "weights.tar"])
def test_the_name_of_a_file_hides_nothing(tmp_path, name):
    path, mark = tmp_path / name, tmp_path / "ran"
    for way in (as_zip, as_legacy, as_pickle):
        way(TENSORS | {"evil": Command(mark)}, path)
        with pytest.raises(CheckpointError, match="dangerous code"):
            read_state_dict(path)
    assert not mark.exists()


def test_what_is_on_no_list_is_left_to_the_reader_which_refuses_it(tmp_path):
    path = tmp_path / "weights.pth"
    as_zip(TENSORS | {"x": Hidden(tmp_path)}, path)
    report = pickles.scan(path)
    assert report.unknown == ("importlib.import_module",) and "not known: importlib.import_module" in str(report)
    with pytest.raises(CheckpointError, match="Python objects, which are never executed"):
        read_state_dict(path)


def test_every_reader_of_legacy_files_looks_first(tmp_path, monkeypatch):
    from small_models import tiny_model
    from transformers import AutoModel

    import unimed
    from unimed.models.weights import WeightsError

    mark = tmp_path / "ran"
    as_pickle([Command(mark)], tmp_path / "records.pkl")
    with pytest.raises(FieldError, match="dangerous code"):
        read_plain_pickle(tmp_path / "records.pkl")
    as_zip({"image_paths": Command(mark)}, tmp_path / "mrg.pth")
    with pytest.raises(ValueError, match="dangerous code"):
        list(read_mrg(tmp_path / "mrg.pth"))
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    as_zip({"a": Command(mark)}, tmp_path / "model" / "pytorch_model.bin")
    for road in (unimed.load, type(model).from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(WeightsError, match="dangerous code"):
            road(tmp_path / "model")
    assert not mark.exists()


def test_the_verb_reports_on_files_and_folders(tmp_path, capsys):
    as_zip(TENSORS, tmp_path / "good.pt")
    assert main(["check-weights", str(tmp_path)]) == 0
    assert "good.pt: nothing but tensors" in capsys.readouterr().out
    (tmp_path / "inner").mkdir()
    as_legacy({"a": Code(tmp_path / "ran")}, tmp_path / "inner" / "bad.bin")
    assert main(["check-weights", str(tmp_path), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [entry["dangerous"] for entry in told] == [[], ["__builtin__.eval"]]  # as protocol 2 calls it
    assert main(["check-weights", str(tmp_path / "inner")]) == 1
    for content in (b"", b"no weights at all", b"PK\3\4 cut"):
        (tmp_path / "inner" / "bad.bin").write_bytes(content)
        assert main(["check-weights", str(tmp_path / "inner")]) == 1
        said = capsys.readouterr().err
        assert said.count("error: ") == 1 and "bad.bin" in said, content
    assert main(["check-weights", str(tmp_path / "nowhere")]) == 1
    assert not (tmp_path / "ran").exists()


def test_without_the_extra_the_verb_names_it_and_readers_go_on(tmp_path, monkeypatch, capsys):
    import sys

    as_zip(TENSORS, tmp_path / "good.pt")
    monkeypatch.setitem(sys.modules, "picklescan", None)
    monkeypatch.setattr(pickles, "available", lambda: False)
    assert main(["check-weights", str(tmp_path)]) == 1
    assert "unimed[scan]" in capsys.readouterr().err
    assert read_state_dict(tmp_path / "good.pt").keys() == TENSORS.keys()

"""Published training checkpoints open safely, convert whole or not at all, and every tensor is accounted for."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from closeness import MODEL, assert_close
from models.clip.recorded import FOLDER, TEXTS, recorded

import unimed
from unimed.models.checkpoints import open_clip, unimed_clip
from unimed.models.checkpoints.reading import CheckpointError

PUBLISHED = FOLDER / "model" / "train_checkpoint.pt"


def test_the_file_is_what_torch_refuses():
    with pytest.raises(Exception, match="weights_only|Weights only"):
        torch.load(PUBLISHED, weights_only=True)


def test_load_opens_the_published_file(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path))
    model = unimed.load(PUBLISHED, device="cpu")
    assert not model.training
    features = model.encode_text(TEXTS["texts"], normalize=False)
    assert_close(features, recorded()["all_text_features_raw"], relative=MODEL)
    again = unimed.load(PUBLISHED, device="cpu", dtype="bfloat16")
    assert again.dtype == torch.bfloat16
    close = torch.nn.functional.cosine_similarity(again.encode_text(TEXTS["texts"]), features)
    assert float(close.min()) > 0.99


def test_convert_from_the_command_line(tmp_path):
    target = tmp_path / "out"
    command = [sys.executable, "tools/convert.py", "--from", "unimed_clip", str(PUBLISHED), str(target)]
    done = subprocess.run([*command, "--dtype", "bfloat16"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "84 entries" in done.stdout and "missing 0, unexpected 0" in done.stdout
    assert (target / "model.safetensors").stat().st_size < 0.55 * PUBLISHED.stat().st_size
    assert subprocess.run(command, capture_output=True).returncode == 1  # never overwritten


def test_a_missing_tensor_is_named_and_nothing_is_written(tmp_path):
    state = torch.load(PUBLISHED, weights_only=False)  # our own recording
    del state["state_dict"]["module.visual.proj"]
    state["state_dict"]["module.visual.head"] = torch.zeros(2)
    for name in ("text_encoder", "open_clip_config.json"):
        source = FOLDER / "model" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match="visual.proj.*visual.head"):
        unimed_clip.convert(tmp_path / "broken.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_tokenizer_the_remedy_is_named(tmp_path):
    shutil.copy(PUBLISHED, tmp_path / "a.pt")
    shutil.copy(FOLDER / "model" / "open_clip_config.json", tmp_path)
    with pytest.raises((CheckpointError, OSError), match="text.encoder"):
        unimed_clip.convert(tmp_path / "a.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_and_foreign_files(tmp_path):
    (tmp_path / "short.pt").write_bytes(PUBLISHED.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="short.pt"):
        unimed_clip.convert(tmp_path / "short.pt", tmp_path / "out")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert not unimed_clip.recognises(tmp_path / "other.pt")
    assert unimed_clip.recognises(PUBLISHED)


def test_a_folder_in_open_clips_layout(tmp_path, monkeypatch, model_folder):
    """BiomedCLIP is published so: configuration, weights and tokenizer in one folder."""
    from safetensors.torch import load_file, save_file

    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "published"
    shutil.copytree(model_folder / "tokenizer", source)
    state = load_file(model_folder / "model.safetensors")
    save_file({n.removeprefix("towers."): t for n, t in state.items()}, source / "open_clip_model.safetensors")
    described = json.loads((FOLDER / "model" / "open_clip_config.json").read_text())
    (source / "open_clip_config.json").write_text(json.dumps(described))
    assert open_clip.recognises(source)
    text = FOLDER / "model" / "text_encoder"
    report = open_clip.convert(source, tmp_path / "out", text_encoder=str(text))
    assert report.mapped == 84
    features = unimed.load(tmp_path / "out").encode_text(TEXTS["texts"], normalize=False)
    assert_close(features, recorded()["all_text_features_raw"], relative=MODEL)


@pytest.fixture()
def model_folder(tmp_path_factory):
    from models.clip.recorded import converted

    return converted(tmp_path_factory.mktemp("clip"))

"""Conversions are found by content, made once by whoever comes first, and never half."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_folders import publish
from safetensors.torch import load_file, save_file

import unimed
from unimed.models.checkpoints import cache, unibiomed

ROOT = Path(__file__).parents[3]


@pytest.fixture
def published(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    publish(tmp_path / "published")
    return tmp_path / "published"


def weight(model):
    return float(model.seg_projection[0].weight.detach()[0, 0])


def changed(folder, by=1.0, keep_times=True):
    """Another number in one tensor: same names, size and, if wanted, times of the file."""
    file = next(folder.glob("*.safetensors"))
    before = file.stat()
    tensors = load_file(file)
    tensors["text_hidden_fcs.0.weight"][0, 0] += by
    save_file(tensors, file)
    if keep_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


@pytest.mark.parametrize("small", [cache.SMALL, 0])  # with 0, every file goes by the notes of large ones
def test_a_changed_checkpoint_is_converted_again(small, published, monkeypatch):
    monkeypatch.setattr(cache, "SMALL", small)
    file = next(published.glob("*.safetensors"))
    changed(published, by=0.0)  # as this library writes it
    before = file.read_bytes()
    first = weight(unimed.load(published, device="cpu"))
    stamp = published.stat()
    changed(published)
    os.utime(published, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert weight(unimed.load(published, device="cpu")) == pytest.approx(first + 1)
    file.write_bytes(before)
    assert weight(unimed.load(published, device="cpu")) == pytest.approx(first)
    assert len(list((published.parent / "cache" / "converted").iterdir())) == 2


def test_the_same_content_is_converted_once_wherever_it_lies(published, monkeypatch):
    unimed.load(published, device="cpu")
    monkeypatch.setattr(unibiomed, "convert", lambda *_, **__: pytest.fail("converted again"))
    unimed.load(published, device="cpu")
    shutil.copytree(published, published.parent / "moved")
    unimed.load(published.parent / "moved", device="cpu")


def test_what_the_key_stands_for(published, monkeypatch):
    key = cache.key_of(published, "unibiomed")
    assert key == cache.key_of(published, "unibiomed")
    keys = {key, cache.key_of(published, "lisa"), cache.key_of(published, "unibiomed", options={"dtype": "bfloat16"})}
    monkeypatch.setattr(cache, "code_hash", lambda: "another version")
    keys.add(cache.key_of(published, "unibiomed"))
    (published / "config.json").write_text(json.dumps(json.loads((published / "config.json").read_text()) | {"a": 1}))
    keys.add(cache.key_of(published, "unibiomed"))
    assert len(keys) == 5


def test_a_failed_or_killed_conversion_leaves_nothing_that_counts(published, monkeypatch):
    convert = unibiomed.convert

    def fail(source, destination, **options):
        convert(source, destination, **options)
        shutil.rmtree(destination)
        raise ValueError("the disk is full")

    monkeypatch.setattr(unibiomed, "convert", fail)
    with pytest.raises(ValueError, match="disk is full"):
        unimed.load(published, device="cpu")
    monkeypatch.setattr(unibiomed, "convert", convert)
    converted = published.parent / "cache" / "converted"
    code = (
        "import os, unimed; from unimed.models.grounded import GroundedMLLM as G; save = G.save_pretrained\n"
        "def die(self, *a, **k):\n    save(self, *a, **k); os.kill(os.getpid(), 9)\n"
        f"G.save_pretrained = die; unimed.load({str(published)!r}, device='cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == -9 and any(".unfinished" in path.name for path in converted.iterdir())
    again = f"import unimed; unimed.load({str(published)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-c", again], cwd=ROOT, capture_output=True, text=True)
    # The dead owner of the lock is not waited for, which would be said.
    assert done.returncode == 0 and "waiting for" not in done.stderr, done.stderr
    assert [path.name for path in converted.iterdir()] == [cache.key_of(published, "unibiomed", unibiomed)]


def test_several_processes_open_a_published_folder_at_once(published):
    code = (
        "import sys, unimed; m = unimed.load(sys.argv[1], device='cpu')\n"
        "print('sum', float(sum(p.double().sum() for p in m.parameters())))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(published)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [[line for line in p.communicate()[0].splitlines() if line.startswith("sum")] for p in started]
    assert [p.returncode for p in started] == [0, 0, 0]
    assert len({lines[0] for lines in said}) == 1
    entries = list((published.parent / "cache" / "converted").iterdir())
    assert len(entries) == 1 and torch.is_tensor(next(iter(load_file(entries[0] / "model.safetensors").values())))

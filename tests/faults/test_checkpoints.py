"""Damaged, cut, unwritable: each is found, named, and the checkpoint before is used."""

import ast
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unimed.engine import checkpoint as checkpoints
from unimed.engine.checkpoint import Checkpoint, CheckpointError


def sample(step):
    table = {"w": torch.arange(1000.0) + step, "b": torch.ones(3, dtype=torch.bfloat16)}
    return Checkpoint(step, {"model": table, "optimizer": {"w/step": torch.tensor(float(step))}}, {"step": step})


@pytest.fixture
def root(tmp_path):
    for step in (10, 20):
        checkpoints.save(tmp_path, sample(step))
    return tmp_path


def test_round_trip(root):
    loaded = checkpoints.load(checkpoints.find(root))
    assert loaded.step == 20 and loaded.state == {"step": 20}
    assert torch.equal(loaded.tables["model"]["w"], torch.arange(1000.0) + 20)
    assert loaded.tables["model"]["b"].dtype == torch.bfloat16


def test_retention_keeps_the_newest(root):
    for step in (30, 40, 50):
        checkpoints.save(root, sample(step), keep=2)
    assert sorted(path.name for path in root.iterdir()) == ["step_00000040", "step_00000050"]


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "metadata.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "deleted"])
def test_damage_is_found_and_the_previous_one_used(root, caplog, name, damage):
    path = root / "step_00000020" / name
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        # In the metadata a flipped digit of a sha256, elsewhere the middle byte.
        place = content.index(b'"sha256": "') + 15 if name == "metadata.json" else len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    with caplog.at_level("WARNING", logger="unimed.engine"):
        assert checkpoints.find(root).name == "step_00000010"
    assert "step_00000020" in caplog.text
    with pytest.raises(CheckpointError, match="step_00000020"):
        checkpoints.load(root / "step_00000020")


def test_every_flipped_bit_of_a_small_file_is_found(root):
    path = root / "step_00000020" / "optimizer.safetensors"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        with pytest.raises(CheckpointError):
            checkpoints.verify(root / "step_00000020")
    path.write_bytes(content)
    checkpoints.verify(root / "step_00000020")


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_full_disk_leaves_the_old_ones(root, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match="No space left on device.*Older checkpoints are untouched"):
        checkpoints.save(root, sample(30), keep=1)
    monkeypatch.undo()
    assert sorted(path.name for path in root.iterdir()) == ["step_00000010", "step_00000020"]
    assert checkpoints.find(root).name == "step_00000020"


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="file systems of this test's own need unshare",
)
def test_real_full_and_read_only_disks():
    script = Path(__file__).parent / "full_disk.py"
    done = subprocess.run([sys.executable, script, "6"], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    result = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert result["full"] == result["detected"] == result["previous_used"] == 6 and result["leftovers"] == 0
    assert result["read_only_detected"] and result["read_only_previous_used"]


def test_background_saves_follow_one_another_and_tell_of_failure(tmp_path):
    writer = checkpoints.Writer(tmp_path / "checkpoints", keep=2, background=True)
    for step in (10, 20, 30):
        writer.write(sample(step))
    writer.wait()
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000020", "step_00000030"]
    (tmp_path / "file").write_text("")
    writer = checkpoints.Writer(tmp_path / "file", keep=2, background=True)
    writer.write(sample(10))
    with pytest.raises(CheckpointError, match="step 10 could not be written"):
        writer.write(sample(20))
    writer.wait()


def test_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoints.save(blocked / "checkpoints", sample(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder(root):
    root.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            checkpoints.save(root, sample(30), keep=1)
        assert checkpoints.find(root).name == "step_00000020"
    finally:
        root.chmod(0o755)


def test_kill_between_writing_and_renaming_leaves_no_trace(root):
    (root / ".writing-step_00000030-1").mkdir()
    shutil.move(root / "step_00000020", root / ".replaced-step_00000020-1")
    checkpoints.save(root, sample(40))
    assert sorted(path.name for path in root.iterdir()) == ["step_00000010", "step_00000020", "step_00000040"]


def test_newer_format_is_refused(root):
    path = root / "step_00000020" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99.*update unimed"):
        checkpoints.load(root / "step_00000020")


def test_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "evil.pt"):
        with pytest.raises(CheckpointError, match="never executed"):
            checkpoints.load_weights(tmp_path / name)
    assert not (tmp_path / "marker").exists()
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "good.pth")
    assert torch.equal(checkpoints.load_weights(tmp_path / "good.pth")["w"], torch.ones(2))


def test_any_flipped_bit_of_the_metadata_is_named(root):
    file = checkpoints.find(root) / "metadata.json"
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        for bit in (0, 4, 5):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                found = checkpoints.verify(file.parent)
            except CheckpointError:
                continue
            # What is left is white space, another step, or an earlier format.
            assert set(found["files"]) == set(json.loads(whole)["files"])

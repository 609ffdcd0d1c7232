"""Checkpoints in parts: nothing is gathered, 1, 2 and 4 ranks read the same, faults leave the last whole one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unimed.engine import checkpoint, sharded, train
from unimed.engine.checkpoint import CheckpointError
from unimed.engine.config import ConfigError
from unimed.engine.strategy import Strategy

ROOT = Path(__file__).parents[2]
TABLES = ("model", "optimizer", "ema")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "engine")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "tests" / "engine" / "sharded_worlds.py", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def outcome(runs):
    return torch.load(runs / "done.pt", weights_only=True)


def tables(run, step=4):
    return checkpoint.load(run / "checkpoints" / f"step_{step:08d}").tables


def assert_equal(first, second, names=TABLES):
    for name in names:
        assert first[name].keys() == second[name].keys()
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name])


@pytest.mark.slow
def test_ranks_write_and_read_their_own_parts(runs):
    found = outcome(runs)
    for name, codes in found["codes"].items():
        if name != "killed":
            said = "".join(path.read_text()[-2000:] for path in (runs / f"{name}-output").iterdir())
            assert set(codes) == {0}, (name, said)
    assert min(found["sizes"]) > 0.8 * max(found["sizes"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four", "one"])
def test_resharding_is_exact(runs, name):
    kept = tables(runs / "two")
    assert len(kept["optimizer"]) > 12 and kept["optimizer"]["head.weight/exp_avg"].any()
    assert_equal(kept, tables(runs / name))


@pytest.mark.slow
def test_two_ranks_resume_exactly_what_was_saved_while_they_trained(runs):
    """The one run saved in the background, the other was stopped and resumed."""
    assert_equal(tables(runs / "whole", 6), tables(runs / "cut", 6))
    assert_equal(tables(runs / "whole", 4), tables(runs / "two", 4))


@pytest.mark.slow
def test_faults_while_saving_leave_the_last_whole_one(runs):
    found = outcome(runs)
    assert [path.name for path in (runs / "full" / "checkpoints").iterdir()] == ["step_00000002"]
    for rank in (0, 1):
        said = (runs / "full-output" / f"rank{rank}.txt").read_text()
        assert "refused: checkpoint of step 4 could not be written" in said and "rank 1: OSError: [Errno 28]" in said
    assert found["codes"]["killed"][1] == -9 and found["codes"]["killed"][0] != 0
    assert found["killed"] == ["step_00000002"]
    assert_equal(tables(runs / "whole", 6), tables(runs / "killed", 6))


@pytest.mark.slow
def test_a_checkpoint_in_parts_is_tested_and_goes_on_with_any_strategy(tiny, runs, tmp_path):
    weights = checkpoint.load_weights(runs / "four")
    assert torch.equal(weights["head.weight"], tables(runs / "two")["ema"]["head.weight"])
    source = str(runs / "four" / "checkpoints" / "step_00000004")
    whole = tiny.config(max_steps=4, validate_interval=0, ema=0.9)
    train(whole, tmp_path, resume=source)
    assert_equal(tables(tmp_path), tables(runs / "two"))


@pytest.fixture
def single(tiny, tmp_path):
    """A run of one process without a process group, saved in parts."""
    settings = tiny.config(max_steps=3, validate_interval=0, checkpoint=dict(interval=1, keep=2, sharded=True))
    train(settings, tmp_path)
    return tmp_path / "checkpoints"


def test_one_process_resumes_its_parts(tiny, single, tmp_path):
    settings = tiny.config(max_steps=3, validate_interval=0)
    train(settings, tmp_path / "whole")
    assert_equal(tables(tmp_path, 3), tables(tmp_path / "whole", 3), TABLES[:2])
    resumed = tiny.config(max_steps=3, validate_interval=0, checkpoint=dict(sharded=True))
    train(resumed, tmp_path / "again", resume=str(single / "step_00000002"))
    assert_equal(tables(tmp_path / "again", 3), tables(tmp_path / "whole", 3), TABLES[:2])


def test_damage_of_a_part_is_found_and_the_previous_one_used(single):
    path = single / "step_00000003" / sharded.FOLDER / "shard-00001-model-00001-of-00001.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-9], content[:-9] + b"x" + content[-8:]):
        path.write_bytes(damaged)
        assert checkpoint.find(single).name == "step_00000002"
        with pytest.raises(CheckpointError, match="shard-00001"):
            checkpoint.load(single / "step_00000003")
    path.unlink()
    assert checkpoint.find(single).name == "step_00000002"


def test_a_part_that_nobody_wrote_is_not_read(single, tmp_path):
    last = Path(shutil.copytree(single / "step_00000002", tmp_path / "step_00000002"))
    checkpoint.verify(last)
    (part, *_) = (last / sharded.FOLDER).glob("*.safetensors")
    shutil.copy(part, part.with_name(f"copy-of-{part.name}"))
    with pytest.raises(CheckpointError, match=f"copy-of-{part.name} is none of the files that were written"):
        checkpoint.verify(last)


def test_metadata_names_nothing_outside_the_folder(single):
    metadata = single / "step_00000003" / "metadata.json"
    for name in ("../step_00000002/state.json", "shards/../../x", "other/state.json"):
        metadata.write_text(metadata.read_text().replace("state.json", name))
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.verify(metadata.parent)
        metadata.write_text(metadata.read_text().replace(name, "state.json"))


def test_a_missing_part_is_named(tmp_path):
    whole = {"model": {"w": torch.arange(8.0)}}
    sharded.write(tmp_path, whole, None).result()
    with pytest.raises(ValueError, match=r"model/w has shape \(8,\), \(9,\) is needed"):
        sharded.read_into(tmp_path, {"model": {"w": torch.empty(9)}})
    with pytest.raises(ValueError, match="model/other is not there"):
        sharded.read_into(tmp_path, {"model": {"other": torch.empty(9)}})


def test_strategies_without_parts_refuse(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Strategy, "has_shards", False)
    with pytest.raises(ConfigError, match="checkpoint.sharded=True does not go with strategy='single'; use 'fsdp2'"):
        train(tiny.config(checkpoint=dict(sharded=True)), tmp_path)


def test_a_word_for_a_switch_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="checkpoint.sharded must be bool"):
        train(tiny.config(checkpoint=dict(sharded="yes")), tmp_path)

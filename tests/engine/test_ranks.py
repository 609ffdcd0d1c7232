"""Two gloo ranks are one process with the joined batch, whatever each of them holds."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unimed.engine import evaluate, train

ROOT = Path(__file__).parent.parent.parent


def weights(folder, step, name="model"):
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def difference(first, second):
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


def needs_deepspeed(name):
    if name.startswith("zero") and not importlib.util.find_spec("deepspeed"):
        pytest.skip("DeepSpeed is not installed")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = Path(__file__).parent / "two_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, folder]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


RARE = dict(type="TinyPoints", extras="first", size=11)
CASES = {
    "ddp": {},
    "ddp-rare": dict(train_data=RARE),
    "ddp-rare-accumulated": dict(train_data=RARE, accumulate=2, clip=0.5),
    "fsdp2": dict(ema=0.9),
    "fsdp2-rare": dict(train_data=RARE),
    **{f"zero{stage}": dict(ema=0.9) for stage in (1, 2, 3)},
    **{f"zero{stage}-rare": dict(train_data=RARE, accumulate=2, clip=0.5) for stage in (1, 2, 3)},
    **{f"zero{stage}-nan": dict(train_data=dict(type="TinyPoints", nan=(3,))) for stage in (1, 2, 3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(tiny, two_ranks, tmp_path, name):
    needs_deepspeed(name)
    common = dict(task=dict(type="TinyTask", dropout=0.0), max_steps=10, validate_interval=0, batch_size=4)
    train(tiny.config(**{**common, **CASES[name]}), tmp_path)
    tables = ("model", "ema") if "ema" in CASES[name] else ("model",)
    largest = max(difference(weights(tmp_path, 10, t), weights(two_ranks / name, 10, t)) for t in tables)
    print(f"{name}: largest weight difference after 10 steps {largest:.1e}")
    assert largest < 5e-5  # ten steps of Adam, which goes along rounding too


@pytest.mark.slow
@pytest.mark.parametrize("word", ["ddp", "fsdp2", "zero1", "zero2", "zero3", "everything-0", "everything-2"])
def test_two_ranks_resume_exactly(two_ranks, word):
    needs_deepspeed(word)
    whole, cut = two_ranks / f"{word}-whole", two_ranks / f"{word}-cut"
    losses = []
    for folder in (whole, cut):
        records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in records if record["kind"] == "train"])
    print(f"{word}: {sum(a == b for a, b in zip(*losses, strict=True))} of 14 losses equal after the resume")
    assert losses[0] == losses[1] and len(losses[0]) == 14
    assert all(difference(weights(whole, 14, t), weights(cut, 14, t)) == 0 for t in ("model", "optimizer", "ema"))


@pytest.mark.slow
def test_two_ranks_test_like_one(tiny, two_ranks, tmp_path):
    evaluate(tiny.config(), two_ranks / "ddp", tmp_path)
    assert (tmp_path / "cases.jsonl").read_text() == (two_ranks / "test" / "cases.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("word", ["fsdp2", "zero3"])
def test_checkpoint_of_two_ranks_resumes_on_one(tiny, two_ranks, tmp_path, word):
    needs_deepspeed(word)
    source = two_ranks / f"{word}-whole" / "checkpoints" / "step_00000010"
    result = train(tiny.config(max_steps=14, batch_size=4), tmp_path, resume=str(source))
    assert result["step"] == 14 and torch.isfinite(torch.tensor(result["loss"]))

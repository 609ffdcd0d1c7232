"""The contrastive task: recorded steps, chunks, ranks, locked towers, whole runs through the trainer."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closeness import LAYER, MODEL, assert_all_close, assert_close
from golden_files import SMALL, recording, tensors
from mmengine.hooks import Hook
from models.clip.recorded import converted
from safetensors.torch import load_file
from tasks import contrastive_ranks as ranks

from unimed.engine import evaluate, train
from unimed.engine.config import load_config
from unimed.engine.loop import schedule_factor
from unimed.geometry import Geometry
from unimed.registry import COLLATORS, DATASETS, HOOKS
from unimed.structures import Sample
from unimed.tasks.contrastive import ContrastiveTask

CONFIGS = sorted(p for p in Path("configs/unimed_clip").glob("*.py") if p.stem != "_sources")


@DATASETS.register_module(force=True)
class RecordedPairs:
    def __len__(self):
        return 36

    def __getitem__(self, index):
        import numpy as np

        return Sample(images=(np.zeros((1, 1)),), geometry=Geometry.pixels(), sample_id=str(index))


@COLLATORS.register_module(force=True)
class RecordedBatches:
    def __init__(self, processor=None):
        self.recorded = tensors("unimed_clip", "train_steps.safetensors")

    def __call__(self, samples):
        step, left = divmod(int(samples[0].sample_id), 6)
        assert left == 0 and len(samples) == 6
        return {"images": self.recorded["images_u8"][step], "input_ids": self.recorded["token_ids"][step]}


def test_six_recorded_steps_through_the_trainer(tmp_path):
    after = tensors("unimed_clip", "train_steps.safetensors")
    expected = json.loads(recording("unimed_clip", "train_steps.json").read_text())
    hyper = expected["hyper"]
    result = train(
        dict(
            task=dict(type="ContrastiveTask", model=str(converted(tmp_path))),
            train_data=dict(mixture=[dict(dataset=dict(type="RecordedPairs"))], shuffle=False),
            collate=dict(type="RecordedBatches"),
            optimizer=dict(
                type="AdamW", lr=hyper["base_lr"], betas=hyper["betas"], eps=hyper["eps"], weight_decay=hyper["wd"]
            ),
            schedule=dict(type="cosine", warmup=hyper["warmup"], warmup_full=True),
            batch_size=6, max_steps=6, device="cpu", log=dict(interval=1, curves=False),
        ),
        work_dir=tmp_path / "run",
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    for mine, theirs in zip(steps, expected["steps"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=MODEL)
    assert [s["lr"] for s in steps] == pytest.approx(expected["lr_per_step"], rel=1e-6)
    state = load_file(Path(result["checkpoint"]) / "model.safetensors")
    named = {k.removeprefix("model.towers.").replace("text.", "text_encoder.", 1): v for k, v in state.items()}
    moved = sum(expected["lr_per_step"])
    compared = 0
    for name in after:
        if name.startswith("final."):
            assert_close(named[name.removeprefix("final.")], after[name], name, 5 * MODEL)
            compared += 1
    assert compared >= 3
    for name, norm in expected["final_param_norms"].items():
        if "key.bias" in name:
            # Its gradient is zero but for rounding, and Adam takes whole steps along rounding.
            assert float(named[name].norm()) <= norm + 2 * moved * named[name].numel() ** 0.5, name
        else:
            # A third of the joint bias is that of the keys.
            loose = moved * named[name].numel() ** 0.5 if "in_proj_bias" in name else 0.0
            assert float(named[name].norm()) == pytest.approx(norm, rel=5 * MODEL, abs=loose), name


def test_decay_groups_and_the_bound_of_the_scale(tmp_path):
    expected = json.loads(recording("unimed_clip", "train_steps.json").read_text())
    task = ContrastiveTask(str(converted(tmp_path)))
    decayed, plain = task.train_parameters()
    names = {id(p): n.replace("text.", "text_encoder.", 1) for n, p in task.model.towers.named_parameters()}
    found = {names[id(p)] for p in plain["params"]}
    assert found == set(expected["no_weight_decay"])
    assert {names[id(p)] for p in decayed["params"]} == set(expected["weight_decay"])
    assert plain["weight_decay"] == 0
    with torch.no_grad():
        task.model.towers.logit_scale.fill_(4.9)
    task.after_step()
    assert float(task.model.towers.logit_scale.detach()) == pytest.approx(math.log(100), abs=1e-6)


def test_recorded_schedules():
    for case in json.loads((SMALL / "unimed_clip" / "lr_schedule.json").read_text()).values():
        if "lr" in case and isinstance(case["lr"], list):
            schedule = dict(type="cosine", warmup=case["warmup"], warmup_full=True, min_ratio=0.0)
            mine = [case["base_lr"] * schedule_factor(schedule, s, case["total_steps"]) for s in case["steps"]]
            assert mine == pytest.approx(case["lr"], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_chunks_give_the_gradients_of_the_whole_batch(loss):
    whole = ranks.batch()
    loss_once, once = ranks.gradients(ranks.small(loss), whole)
    loss_parts, parts = ranks.gradients(ranks.small(loss, chunk_size=3), whole)
    assert loss_parts == pytest.approx(loss_once, rel=LAYER)
    assert_all_close(parts, once, LAYER)
    assert len(once) == len(list(ranks.small(loss).parameters()))


def test_chunks_keep_less():
    """What is saved for the backward pass: features and inputs only, whatever the batch."""

    def saved(task):
        sizes = []

        def keep(tensor):
            sizes.append(tensor.untyped_storage().nbytes() if tensor.requires_grad or tensor.is_floating_point() else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            task(ranks.batch(32))
        return sum(sizes)

    once, parts = saved(ranks.small()), saved(ranks.small(chunk_size=4))
    print(f"kept for the backward pass: {once} bytes at once, {parts} in chunks")
    assert parts < once / 4


def test_two_ranks(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    recording = SMALL / "unimed_clip" / "dist_loss_ws2.safetensors"
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, ranks.__file__, str(recording), str(out)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(out.read_text())
    assert math.isfinite(results.pop("gathered_sigmoid"))
    print("largest differences:", results)
    assert set(results) == {
        "recorded",
        "validation",
        "clip/None/False",
        "clip/2/False",
        "clip/None/True",
        "siglip/None/False",
    }
    assert max(results.values()) < MODEL


def test_locked_towers():
    model = dict(texts=["a lung", "the heart"], **ranks.SIZES)
    task = ContrastiveTask(model, lock_image=0, lock_text=0)
    learns = {n for n, p in task.model.towers.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("visual.", "text.transformer.")) for n in learns) and "logit_scale" in learns
    partly = ContrastiveTask(model, lock_image=1)
    learns = {n for n, p in partly.model.towers.visual.named_parameters() if p.requires_grad}
    assert learns and learns < {n for n, _ in partly.model.towers.visual.named_parameters()}
    with pytest.raises(ValueError, match="bias"):
        ContrastiveTask(model | {"sigmoid": False}, loss="siglip")
    with pytest.raises(ValueError, match="infonce"):
        ContrastiveTask(model, loss="infonce")


def test_towers_start_from_files(tmp_path):
    """As from MetaCLIP and BiomedBERT: a trainer's file for the eyes, a Hugging Face folder for the text."""
    donor = ranks.small()
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(0.1)
    state = {f"module.{n}": t for n, t in donor.model.towers.state_dict().items() if n.startswith("visual.")}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "eyes.pt")
    donor.model.towers.text.transformer.save_pretrained(tmp_path / "bert")
    model = dict(texts=["a lung", "the heart", "liver and spleen", "no finding"], seed=1, **ranks.SIZES)
    task = ContrastiveTask(model, vision_init=str(tmp_path / "eyes.pt"), text_init=str(tmp_path / "bert"))
    own, theirs = task.model.towers.state_dict(), donor.model.towers.state_dict()
    assert all(torch.equal(own[n], theirs[n]) for n in own if n.startswith(("visual.", "text.transformer.")))
    assert not torch.equal(own["text.proj.0.weight"], theirs["text.proj.0.weight"])


def tiny_shards(folder, count=24):
    from data.readers.test_shards import png, write_shard

    words = ["a dark picture", "a bright picture"]
    for number in range(3):
        members = []
        for place in range(count // 3):
            bright = place % 2
            text = json.dumps({"captions": [words[bright], words[bright] + " again"], "label": words[bright]})
            members += [(f"{place:04d}.png", png(40 + 170 * bright + place)), (f"{place:04d}.json", text.encode())]
        write_shard(folder / f"dataset-{number:06d}.tar", members)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_trains(path, tmp_path, monkeypatch):
    """The shipped files with a small model and small shards in the place of the big ones."""
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    tiny_shards(tmp_path / "shards")
    settings = load_config(path)
    model = dict(type="SmallClip", texts=["a dark picture again", "a bright picture"], **ranks.SIZES)
    settings.task.pop("model")  # Config.update merges dicts
    settings.task.update(model=model, vision_init=None, text_init=None, tokenizer=None, labels=None)
    data = dict(type="ImageTextShards", shards=str(tmp_path / "shards" / "*.tar"))
    settings.train_data = dict(mixture=[dict(dataset=data, weight=2.0), dict(dataset=data | {"limit": 8})])
    settings.val_data = settings.test_data = data
    settings.update(batch_size=8, max_steps=2, num_workers=0, device="cpu", validate_interval=2)
    settings.optimizer.lr = 1e-3
    settings.log.to = ()
    train(settings, work_dir=tmp_path / "run")
    if path.stem != "_tiny":
        return
    metrics = evaluate(settings, tmp_path / "run", work_dir=tmp_path / "test")
    assert set(metrics["tables"]) == {"retrieval", "zero_shot"}
    row = metrics["tables"]["zero_shot"][0]
    assert row["chance"] == 0.5 and row["cases"] == 24
    assert "chance_R@1" in (tmp_path / "test" / "metrics.md").read_text()
    from unimed.engine.exporting import export

    export(settings, tmp_path / "run", tmp_path / "exported")
    import unimed

    assert unimed.load(tmp_path / "exported", device="cpu").encode_text("a dark picture").shape == (1, 16)


def test_it_learns_and_broken_pairs_are_counted(tmp_path, monkeypatch):
    """Dark and bright pictures are told apart after a few steps; broken samples and a lost shard do not stop it."""
    from data.readers.test_shards import write_shard

    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    tiny_shards(tmp_path / "shards")
    write_shard(
        tmp_path / "shards" / "dataset-000009.tar", [("0.png", b"broken"), ("0.txt", b"a picture"), ("1.txt", b"x")]
    )
    labels = ["a dark picture", "a bright picture"]
    settings = dict(
        task=dict(type="ContrastiveTask", model=dict(texts=labels, **ranks.SIZES), labels=labels, templates=["{}"],
                  multi_positive=True),
        train_data=dict(type="ImageTextShards", shards=str(tmp_path / "shards" / "*.tar")),
        test_data=dict(type="ImageTextShards", shards=str(tmp_path / "shards" / "dataset-00000[012].tar")),
        collate=dict(type="ImageTextCollator"),
        optimizer=dict(type="AdamW", lr=2e-3),
        batch_size=12, max_steps=80, device="cpu", log=dict(interval=20, curves=False),
        guards=dict(max_broken=200),
    )  # fmt: skip
    train(settings, work_dir=tmp_path / "run")
    metrics = evaluate(settings, tmp_path / "run")
    assert metrics["summary"]["accuracy"] > 0.9
    log = "".join(p.read_text() for p in (tmp_path / "run").rglob("*.log"))
    assert "dataset-000009.tar: sample 0" in log and "sample 1 has no image" in log
    from unimed.engine.loop import TrainingError

    with pytest.raises(TrainingError, match="max_broken=1"):
        train(settings | {"guards": dict(max_broken=1), "max_steps": 20}, work_dir=tmp_path / "other")


@HOOKS.register_module(force=True)
class RemoveShard(Hook):
    """Deletes a file while the run goes on."""

    def __init__(self, path):
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 1:
            os.remove(self.path)


def run_settings(folder, **changes):
    labels = ["a dark picture", "a bright picture"]
    return dict(
        task=dict(type="ContrastiveTask", model=dict(texts=labels, **ranks.SIZES)),
        train_data=dict(type="ImageTextShards", shards=str(folder / "*.tar")),
        collate=dict(type="ImageTextCollator", scale=(0.3, 1.0)),
        optimizer=dict(type="AdamW", lr=1e-3),
        batch_size=8, max_steps=6, device="cpu", log=dict(interval=1, curves=False), checkpoint=dict(interval=3),
    ) | changes  # fmt: skip


def test_a_shard_that_vanishes_in_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    tiny_shards(tmp_path / "shards")
    gone = str(tmp_path / "shards" / "dataset-000001.tar")
    train(run_settings(tmp_path / "shards", hooks=[dict(type="RemoveShard", path=gone)]), work_dir=tmp_path / "run")
    log = "".join(p.read_text() for p in (tmp_path / "run").rglob("*.log"))
    assert "dataset-000001.tar: the shard is gone" in log


def test_it_resumes_in_the_middle_of_the_shards(tmp_path, monkeypatch):
    """Stopped after step 3 of 6 and taken up again: the same weights, crops and captions drawn anew included."""
    monkeypatch.setenv("UNIMED_CACHE", str(tmp_path / "cache"))
    tiny_shards(tmp_path / "shards")
    settings = run_settings(tmp_path / "shards")
    whole = train(settings, work_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step_00000006")
    half = train(settings, work_dir=tmp_path / "half", resume="auto")
    first, second = (load_file(Path(r["checkpoint"]) / "model.safetensors") for r in (whole, half))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_published_steps_of_an_epoch():
    """Ten epochs of the released counts, 16 processes of 128: as many steps as the configuration says."""
    cases = json.loads((SMALL / "unimed_clip" / "epoch_arithmetic.json").read_text())
    case = next(c for c in cases if (c["batch"], c["world"]) == (128, 16))
    assert load_config("configs/unimed_clip/vit_b16.py").max_steps == 10 * case["num_batches"]


def test_a_caption_too_long_is_named(caplog):
    task = ranks.small()
    ids, cut = task.processor.texts(["lung " * 100, "a lung"])
    assert cut == [0]
    batch = ranks.batch(4)
    task(batch | {"cut": ["shard.tar/0007"]})
    task(batch | {"cut": ["shard.tar/0007", *(f"shard.tar/1{n:03d}" for n in range(99))]})
    assert "shard.tar/0007" in caplog.text
    assert caplog.text.count("and was cut") == 20 and caplog.text.count("no longer named") == 1

"""A task small enough to train in a test: a line through points, with dropout, noise, and a part few batches use."""

import os
import random
import signal
import time

import numpy as np
import torch
from mmengine.hooks import Hook

from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.registry import COLLATORS, DATASETS, HOOKS, TASKS
from unimed.structures import Sample
from unimed.tasks.base import Task


@DATASETS.register_module(force=True)
class TinyPoints:
    """Points whose label is a linear function; `broken` indices raise, `nan` ones carry NaN, even ones an extra."""

    def __init__(self, size=23, seed=0, augment=True, broken=(), nan=(), sleep_s=0.0, extras="even"):
        self.points = np.random.default_rng(seed).normal(size=(size, 6)).astype(np.float32)
        self.augment, self.broken, self.nan, self.sleep_s, self.extras = augment, set(broken), set(nan), sleep_s, extras

    def __len__(self):
        return len(self.points)

    def length_of(self, index):
        return 3 + index % 5

    def __getitem__(self, index):
        time.sleep(self.sleep_s)
        if index in self.broken:
            raise OSError(f"point {index} is unreadable")
        point = self.points[index].copy()
        if self.augment:
            point += (
                0.1 * np.random.normal(size=6).astype(np.float32) + 0.1 * random.random() + 0.1 * torch.rand(1).item()
            )
        if index in self.nan:
            point[:] = np.nan
        extra = {"even": index % 2 == 0, "none": False, "first": index == 0}[self.extras]
        return Sample(
            images=(point[None],),
            geometry=Geometry.pixels(),
            sample_id=f"point-{index}",
            labels={"y": float(self.points[index].sum()), "extra": extra},
        )


@DATASETS.register_module(force=True)
class TinyDying(TinyPoints):
    """Its fourth point kills the process that reads it, as often as `times`; a file counts, one letter each."""

    def __init__(self, folder, times):
        super().__init__(size=8)
        self.deaths, self.times = os.path.join(folder, "deaths"), times

    def __getitem__(self, index):
        with open(self.deaths, "a+") as stream:
            stream.seek(0)
            if index == 3 and len(stream.read()) < self.times:
                stream.write("x")
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@DATASETS.register_module(force=True)
class TinyHanging(TinyPoints):
    """Its fourth point never comes, as often as `times`; a file counts, one letter each."""

    def __init__(self, folder, times):
        super().__init__(size=8)
        self.hangs, self.times = os.path.join(folder, "hangs"), times

    def __getitem__(self, index):
        with open(self.hangs, "a+") as stream:
            stream.seek(0)
            if index == 3 and len(stream.read()) < self.times:
                stream.write("x")
                stream.flush()
                time.sleep(3600)
        return super().__getitem__(index)


@DATASETS.register_module(force=True)
class TinyStuck(TinyPoints):
    """On one rank the ninth point never comes: it waits in Python ("sleep"), or the whole process stands ("stop")."""

    def __init__(self, rank, how="sleep"):
        super().__init__(size=64)
        self.stuck, self.how, self.reads = int(os.environ["RANK"]) == rank, how, 0

    def __getitem__(self, index):
        self.reads += 1
        if self.stuck and self.reads == 9:
            if self.how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(3600)
        return super().__getitem__(index)


@DATASETS.register_module(force=True)
class TinySignal(TinyPoints):
    """Sends this process a signal when it is built, or when the sample `index` is read."""

    def __init__(self, number, index=None, size=23):
        super().__init__(size=size)
        self.number, self.index = number, index
        if index is None:
            os.kill(os.getpid(), number)

    def __getitem__(self, index):
        if index == self.index:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


@DATASETS.register_module(force=True)
class TinyMissing:
    """Data whose split is not there."""

    def __init__(self):
        raise FileNotFoundError("data/tiny has no split 'val'")


@COLLATORS.register_module(force=True)
class TinyCollator:
    def __init__(self, processor=None):
        self.processor = processor

    def __call__(self, samples):
        return {
            "x": torch.from_numpy(np.concatenate([s.images[0] for s in samples])),
            "y": torch.tensor([s.labels["y"] for s in samples]),
            "extra": torch.tensor([s.labels["extra"] for s in samples]),
            "attention_mask": torch.ones(len(samples), 4),
            "sample_ids": [s.sample_id for s in samples],
        }


@TASKS.register_module(force=True)
class TinyTask(Task):
    def __init__(self, width=16, dropout=0.2, rate=None):
        super().__init__()
        self.rate = rate
        self.body = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.GELU(), torch.nn.Dropout(dropout))
        self.head = torch.nn.Linear(width, 1)
        self.extra_head = torch.nn.Linear(width, 1)
        self.frozen = torch.nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def train_parameters(self):
        decayed, plain = self.body.parameters(), [*self.head.parameters(), *self.extra_head.parameters()]
        return [{"params": list(decayed)}, {"params": plain, "weight_decay": 0.0}]

    def shard_modules(self):
        return [self.body]

    def normalizers(self, batch):
        return {"samples": len(batch["y"]), "extras": int(batch["extra"].sum())}

    def forward(self, batch):
        shares = batch.get("normalizers") or self.normalizers(batch)
        hidden = self.body(batch["x"])
        fit = (self.head(hidden)[:, 0] - batch["y"]).square().sum() / max(shares["samples"], 1e-9)
        losses = {"loss_fit": fit}
        loss = fit
        if batch["extra"].any():
            hits = self.extra_head(hidden[batch["extra"]])[:, 0] - batch["y"][batch["extra"]].abs()
            losses["loss_extra"] = hits.square().sum() / max(shares["extras"], 1e-9)
            loss = loss + 0.5 * losses["loss_extra"]
        return {"loss": loss, **losses}

    def validate(self, samples, predictions=None):
        y = torch.tensor([s.labels["y"] for s in samples])
        found = torch.tensor([float(p.text) for p in predictions or self.predict_samples(samples)])
        rate = {} if self.rate is None else {"grounding_rate": self.rate}
        return rate | {"error": (found - y).abs().mean().item()}

    @torch.no_grad()
    def predict_samples(self, samples):
        x = torch.from_numpy(np.concatenate([s.images[0] for s in samples])).to(self.head.weight.device)
        return [Prediction(text=f"{value:.6f}") for value in self.head(self.body(x))[:, 0].tolist()]

    def score(self, samples, predictions, train=()):
        errors = [abs(float(p.text) - s.labels["y"]) for s, p in zip(samples, predictions, strict=True)]
        return {"mean_error": sum(errors) / len(errors), "cases": len(errors)}


def config(**changes):
    base = dict(
        task=dict(type="TinyTask"),
        train_data=dict(
            mixture=[
                dict(dataset=dict(type="TinyPoints"), weight=2.0),
                dict(dataset=dict(type="TinyPoints", size=9, seed=1), weight=1.0),
            ]
        ),
        val_data=dict(type="TinyPoints", size=8, seed=2, augment=False),
        test_data=dict(type="TinyPoints", size=8, seed=3, augment=False),
        collate=dict(type="TinyCollator"),
        optimizer=dict(type="AdamW", lr=1e-2),
        schedule=dict(type="cosine", warmup=3),
        batch_size=4,
        max_steps=24,
        validate_interval=6,
        checkpoint=dict(interval=5, keep=2),
        log=dict(interval=1, curves=False),
        device="cpu",
        seed=7,
    )
    base.update(changes)
    return base


def everything(**changes):
    """Dropout, augmentation, a mixture, token budgets, accumulation, clipping, averaging and autocast at once."""
    data = dict(
        mixture=[
            dict(dataset=dict(type="TinyPoints"), weight=2.0),
            dict(dataset=dict(type="TinyPoints", size=9, seed=1), weight=1.0),
        ],
        token_budget=20,
        group_by_length=3,
    )
    options = dict(accumulate=2, clip=1.0, ema=0.9, precision="bf16", max_steps=9, validate_interval=0)
    return config(train_data=data, **{**options, **changes})


@HOOKS.register_module(force=True)
class StopAt(Hook):
    """Sends this process a signal after a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx + 1 == self.step - (self.number == signal.SIGTERM):
            os.kill(os.getpid(), self.number)

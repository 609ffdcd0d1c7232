"""Rows of `unimed speed all` for training: a step beside a bare loop, and what packing and caching give."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time

import numpy as np
import torch

from unimed.commands.speed_rows import Sizes, described, row
from unimed.registry import COLLATORS, DATASETS, TASKS
from unimed.tasks.base import Task

#: Tokens of a sequence, and sequences of a batch.
LENGTH, BATCH = 128, 4
#: Tokens of a packed row.
PACK = 128
_FIRST = 3  # steps that are left out: they build caches


class Tokens:
    """Random sequences, the same at every asking."""

    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return torch.randint(0, 1000, (LENGTH,), generator=torch.Generator().manual_seed(index))


class Stack:
    def __call__(self, samples):
        return {"input_ids": torch.stack(samples)}


class Language(Task):
    """Next tokens of a small Llama; notes when each pass begins, as (CPU seconds, wall seconds)."""

    processor = None
    times: list[tuple[float, float]] = []

    def __init__(self, width: int = 256, layers: int = 5):
        from unimed.models.starting.rivals import random_llama

        super().__init__(random_llama(width, layers, 1000))

    def forward(self, batch):
        self.times.append(_now())
        return {"loss": self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss}


@contextlib.contextmanager
def _registered():
    """Names that a config may use, for as long as it is needed: nobody shall find them among data sets and tasks."""
    given = {DATASETS: Tokens, COLLATORS: Stack, TASKS: Language}
    for registry, one in given.items():
        registry.register_module(name=f"Speed{one.__name__}", module=one)
    try:
        yield
    finally:
        for registry, one in given.items():
            registry.module_dict.pop(f"Speed{one.__name__}")


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def training(sizes: Sizes, repeat: int, peak: float) -> list[dict]:
    """Both rows."""
    return [_engine(sizes, repeat, peak), _packed(sizes, repeat)]


def _engine(sizes: Sizes, repeat: int, peak: float) -> dict:
    """A step of the engine against a loop that holds nothing but what a step needs: same model, batches, optimizer."""
    spent = {name: {"cpu_s": [], "wall_s": []} for name in ("ours", "bare PyTorch loop")}
    for _ in range(repeat):
        for name, run in zip(spent, (_with_engine, _bare), strict=True):
            Language.times.clear()
            run(sizes)
            times = Language.times[_FIRST:]
            for place, kind in enumerate(("cpu_s", "wall_s")):
                steps = [b[place] - a[place] for a, b in zip(times, times[1:], strict=False)]
                spent[name][kind] += steps
    weights = sum(p.numel() for p in Language(sizes.train_width, sizes.train_layers).parameters() if p.ndim > 1)
    return described("a training step", spent, 6 * weights * BATCH * LENGTH / 1e9, peak)


def _with_engine(sizes: Sizes) -> None:
    from unimed.engine import train

    with _registered(), tempfile.TemporaryDirectory() as folder:
        train(
            dict(
                task=dict(type="SpeedLanguage", width=sizes.train_width, layers=sizes.train_layers),
                train_data=dict(type="SpeedTokens"),
                collate=dict(type="SpeedStack"),
                optimizer=dict(type="AdamW", lr=1e-4),
                batch_size=BATCH,
                max_steps=sizes.train_steps,
                clip=1.0,
                device="cpu",
                checkpoint=dict(interval=0, keep=1),
                log=dict(interval=10, curves=False),
            ),
            folder,
        )


def _bare(sizes: Sizes) -> None:
    from unimed.data.mixture import Mixture

    model, data, order = Language(sizes.train_width, sizes.train_layers), Tokens(), Mixture([4096])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    keys = [[order[i].index for i in range(BATCH * s, BATCH * (s + 1))] for s in range(sizes.train_steps)]
    for batch in torch.utils.data.DataLoader(data, batch_sampler=keys, collate_fn=Stack()):
        loss = model(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()


def _packed(sizes: Sizes, repeat: int) -> dict:
    """Steps over the same samples: packed rows and kept image features, against padded rows and images encoded anew.

    Features were kept in the round that warms up, as after the first epoch. Answers are a few words long to two
    hundred, most of them short.
    """
    from unimed.data.collate.grounded import GroundedCollator
    from unimed.models.starting.grounded_small import build_small
    from unimed.tasks.grounding import GroundingTask

    samples = _samples(sizes.train_samples)
    texts = [text for sample in samples for _, text in sample.conversation]
    model = build_small(texts, hidden_dim=sizes.train_width, layers=sizes.train_layers)
    tasks = {
        "ours": GroundingTask(model, freeze=["mask_head"], cache_images=len(samples)),
        "bare loop, padded rows": GroundingTask(copy.deepcopy(model), freeze=["mask_head"]),
    }
    size = min(16, len(samples))
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]

    def steps(task, pack: int):
        collate = GroundedCollator(task.processor, pack=pack)
        optimizer = torch.optim.AdamW((p for p in task.parameters() if p.requires_grad), lr=0.0)
        task.train()

        def work():
            for batch in batches:
                task(collate(batch))["loss"].backward()
                torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return work

    ways = {name: steps(task, PACK if name == "ours" else 0) for name, task in tasks.items()}
    return row(f"{len(batches)} training steps, rows packed and image features kept", ways, repeat)


def _samples(count: int) -> list:
    from unimed.geometry import Geometry
    from unimed.structures import Region, Sample

    numbers, words = np.random.default_rng(0), ["lung", "liver", "lesion", "small", "left", "right", "no", "in", "the"]
    made = []
    for number in range(count):
        image = numbers.integers(0, 255, (128, 128, 3), dtype=np.uint8)
        mask = np.zeros((128, 128), dtype=bool)
        mask[20:60, 30:90] = True
        length = int(np.clip(numbers.lognormal(2.5, 1.0), 3, 200))
        answer = " ".join(numbers.choice(words, length))
        talk = (("user", "Describe the image."), ("assistant", f"{answer} [SEG]"))
        made.append(Sample(
            images=(image,), geometry=Geometry.pixels(), sample_id=f"sample-{number}", conversation=talk,
            regions=(Region("lung", mask=mask),),
        ))  # fmt: skip
    return made

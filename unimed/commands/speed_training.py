"""Rows of `unimed speed all` for training: the quickstart's model in the engine, beside a bare PyTorch loop.

A frozen image encoder, a language model that starts from nothing, records with short and long answers. The bare loop
pads its rows and encodes the images of every batch; the engine does the same, or packs rows, keeps the features of
images, or both. After each step of the engine the bare loop takes one on the same records.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from unimed.commands.speed_records import write_records
from unimed.commands.speed_rows import Sizes, described, operations
from unimed.registry import DATASETS, TASKS
from unimed.tasks.grounding import GroundingTask

#: What the engine may do that the bare loop does not, by the name of its row.
WAYS = {
    "a training step": {},
    "a training step, rows packed": {"pack": 256},
    "a training step, image features kept": {"keep": True},
    "a training step, rows packed and image features kept": {"pack": 256, "keep": True},
    # The shortest step there is: what the engine itself costs shows best. Many of them take no longer than one above.
    "a training step, image features kept in both": {"keep": True, "keep_bare": True, "times": 4},
}
_RATE, _CLIP = 1e-3, 1.0


def training(sizes: Sizes, repeat: int, peak: float) -> list[dict]:
    """A row for each of `WAYS`; `repeat` is the number of steps that count, after a pass over all records."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_records(folder, sizes.train_batch * sizes.train_batches, sizes.train_images)
        return [
            _beside(name, sizes, Path(folder, f"run-{number}"), data, repeat, peak, **way)
            for number, (name, way) in enumerate(WAYS.items())
        ]


def bare_loop(task: dict, dataset: dict, batch: int) -> Iterator[float]:
    """Train as one would without this package's engine; gives the loss of every step, without end."""
    from torch.utils.data import DataLoader

    from unimed.data.collate.grounded import GroundedCollator

    model, data = TASKS.build(task), DATASETS.build(dataset)
    optimizer = torch.optim.AdamW(model.train_parameters(), lr=_RATE)
    loader = DataLoader(data, batch_size=batch, collate_fn=GroundedCollator(model.processor))
    model.train()
    while True:
        for samples in loader:
            loss = model(samples)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()


class Beside(GroundingTask):
    """After each step of the engine takes one of the bare loop, and notes seconds and losses of both.

    Args:
        bare: arguments of `bare_loop`.
        first: steps that do not count.
    """

    last: Beside  # the one that was built last: the engine gives none back

    def __init__(self, bare: dict, first: int, **arguments):
        super().__init__(**arguments)
        self.loop, self.first, self.steps, self.left = bare_loop(**bare), first, 0, _now()
        self.spent = {name: {"cpu_s": [], "wall_s": []} for name in ("ours", "bare PyTorch loop")}
        self.losses: dict[str, list[float]] = {name: [] for name in self.spent}
        Beside.last = self

    def forward(self, batch, **others):
        found = super().forward(batch, **others)
        self.losses["ours"].append(float(found["loss"].detach()))
        return found

    def after_step(self) -> None:
        super().after_step()
        came = _now()
        self.losses["bare PyTorch loop"].append(next(self.loop))
        now = _now()
        if self.steps >= self.first:
            for name, begin, end in (("ours", self.left, came), ("bare PyTorch loop", came, now)):
                for place, kind in enumerate(("cpu_s", "wall_s")):
                    self.spent[name][kind].append(end[place] - begin[place])
        self.steps, self.left = self.steps + 1, _now()


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


@contextlib.contextmanager
def _registered(name: str) -> Iterator[None]:
    """The task under a name that a config may use, for as long as it is needed: nobody shall find it among tasks."""
    TASKS.register_module(name=name, module=Beside)
    try:
        yield
    finally:
        TASKS.module_dict.pop(name)


def _beside(
    what: str, sizes: Sizes, folder: Path, data: Path, repeat: int, peak: float, pack: int = 0, keep: bool = False,
    keep_bare: bool = False, times: int = 1,
) -> dict:  # fmt: skip
    from unimed.engine import train

    dataset = dict(type="RecordDataset", path=str(data))
    model = dict(type="SmallGroundedMLLM", texts=str(data / "records" / "train.jsonl"), **sizes.train_model)
    plain = dict(type="GroundingTask", model=model, cache_images=sizes.train_images if keep_bare else 0)
    with _registered("SpeedBeside"):
        train(
            dict(
                task=dict(
                    type="SpeedBeside", model=model, cache_images=sizes.train_images if keep else 0,
                    bare=dict(task=plain, dataset=dataset, batch=sizes.train_batch), first=sizes.train_batches,
                ),
                train_data=dict(mixture=[dict(dataset=dataset)], shuffle=False),
                collate=dict(type="GroundedCollator", pack=pack),
                optimizer=dict(type="AdamW", lr=_RATE),
                schedule=dict(type="constant", warmup=0),
                batch_size=sizes.train_batch,
                max_steps=sizes.train_batches + times * repeat,
                clip=_CLIP,
                device="cpu",
                checkpoint=dict(interval=0, keep=1),
                log=dict(interval=10, curves=False),
            ),
            folder,
        )  # fmt: skip
    beside, lines = Beside.last, (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    waits = [one["data_wait"] for one in map(json.loads, lines) if one["kind"] == "train"]
    ours, bare = beside.losses.values()
    # Counted for the step that computes everything; what is kept or packed away is no operation.
    loop = bare_loop(plain, dataset, sizes.train_batch)
    gflop = 0.0 if keep or pack else operations(lambda: next(loop), learns=True)
    return described(what, beside.spent, gflop, peak) | {
        "share_waiting_for_data": statistics.median(waits),
        # The first step has the same weights in both; from there on differences of rounding grow.
        "loss_differs_by": abs(ours[0] / bare[0] - 1),
    }

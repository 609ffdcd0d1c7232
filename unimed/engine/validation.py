"""Validation: what is measured on `val_data` while training, opened before the first step, never the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from unimed.data.mixture import BrokenSample, DataError, Mixture, seeded
from unimed.engine.strategy import total, world
from unimed.engine.stream import build_datasets, to_device
from unimed.io.remote import redacted
from unimed.progress import stage

#: Samples whose predictions are made together; the task splits them by its own batch size.
CHUNK = 32


class Validation:
    """Mean losses over batches of `val_data`, and what the task measures on some of its samples.

    Args:
        settings: the checked config, with val_data.
        collator: that of the training data.

    A sample that cannot be read is left out, named once, and counted with the broken ones of the training.

    Raises:
        DataError: a data set is empty, or its first samples cannot be read or collated. So a wrong path or split is
            found before the first step.
    """

    def __init__(self, settings: Mapping, collator):
        try:
            datasets, self.names, weights, options = build_datasets(settings["val_data"])
        except (OSError, ValueError, LookupError) as error:
            raise DataError(f"val_data: {error}{_REMEDY}") from error
        if options:
            raise DataError(f"val_data: unknown key {sorted(options)[0]!r}; valid: mixture")
        empty = [name for name, dataset in zip(self.names, datasets, strict=True) if not len(dataset)]
        if empty:
            raise DataError(f"val_data: {empty[0]} holds no samples{_REMEDY}")
        self.settings, self.collator, self.datasets = settings, collator, datasets
        self.mixture = Mixture([len(d) for d in datasets], weights, settings["seed"], shuffle=True)
        self._known_broken: set[tuple[int, int]] = set()
        self._new_broken: list[BrokenSample] = []
        self._open()

    def _open(self) -> None:
        """Read and collate one sample of every data set; a few may be broken, as in training."""
        for number, (dataset, name) in enumerate(zip(self.datasets, self.names, strict=True)):
            attempts = min(10, len(dataset))
            sample = next((s for index in range(attempts) if (s := self._read(number, index)) is not None), None)
            if sample is None:
                raise DataError(
                    f"val_data: none of the first {attempts} samples can be read: {self._new_broken[-1]}{_REMEDY}"
                )
            try:
                with seeded(self.settings["seed"], 6):
                    self.collator([sample])
            except (ValueError, TypeError, LookupError) as error:
                raise DataError(f"val_data: {name}: the collator refuses a sample: {error}") from error

    def _read(self, dataset: int, index: int):
        """A sample, or None (and noted) where it is broken."""
        try:
            with seeded(self.settings["seed"], 9, dataset, index):
                return self.datasets[dataset][index]
        except Exception as error:  # whatever a reader raises, one record must not end a run of days
            if (dataset, index) not in self._known_broken:
                self._known_broken.add((dataset, index))
                self._new_broken.append(
                    BrokenSample(self.names[dataset], index, redacted(f"{type(error).__name__}: {error}"))
                )
            return None

    def _place(self, number: int) -> tuple[int, int]:
        key = self.mixture[number]
        return key.dataset, key.index

    def run(self, runner) -> dict[str, float] | None:
        """Measure; all ranks call it. None where a signal asked to stop in the middle.

        Random numbers of the training stay as they were.

        Raises:
            TrainingError: more broken samples than `guards.max_broken`.
        """
        strategy, task = runner.strategy, runner.strategy.task
        devices = [strategy.device] if strategy.device.type == "cuda" else []
        task.eval()
        measuring = stage(f"validating after step {runner.train_loop.iter}")
        with measuring, torch.random.fork_rng(devices), seeded(self.settings["seed"], 6), torch.no_grad():
            metrics = self._losses(runner)
            # Sharded parameters are gathered by all ranks together; there losses are all that is measured.
            if metrics is not None and not strategy.collective:
                found = self._task_metrics(runner)
                metrics = None if found is None else metrics | found
        broken, self._new_broken = self._new_broken, []
        # Where all ranks read everything they all find the same ones.
        counted = 0 if strategy.collective and world()[0] else len(broken)
        runner.train_loop.note_broken(broken, int(total([float(counted)], strategy.device)[0]))
        return metrics

    def _rounds(self, runner, chunks: list[list[int]], shared: bool):
        """The chunks of this rank, as often as the rank with most has some; ends early when a signal came."""
        rank, size = (0, 1) if shared else world()
        device = runner.strategy.device
        for start in range(0, len(chunks), size):
            runner.watchdog.beat(f"validating after step {runner.train_loop.iter}", waiting=world()[1] > 1)
            if total([1.0 if runner.shutdown.requested else 0.0], device)[0]:
                yield None
                return
            yield chunks[start + rank] if start + rank < len(chunks) else []

    def _losses(self, runner) -> dict[str, float] | None:
        settings, strategy, size = self.settings, runner.strategy, self.settings["batch_size"]
        count = min(sum(len(d) for d in self.datasets), settings["validate_batches"] * size)
        chunks = [list(range(i, min(i + size, count))) for i in range(0, count, size)]
        sums, seen = {}, 0
        for chunk in self._rounds(runner, chunks, strategy.collective):
            if chunk is None:
                return None
            samples = [s for number in chunk if (s := self._read(*self._place(number))) is not None]
            if not samples:
                continue
            batch = to_device(self.collator(samples), strategy.device)
            with strategy.autocast():
                outputs = (strategy.module if strategy.collective else strategy.task)(batch)
            seen += len(samples)
            for name, value in outputs.items():
                if torch.is_tensor(value) and value.numel() == 1:
                    sums[name] = sums.get(name, 0.0) + float(value) * len(samples)
        names = sorted(sums)
        if world()[1] > 1:
            every = [None] * world()[1]
            dist.all_gather_object(every, names)
            names = sorted({name for part in every for name in part})
        *values, seen = total([sums.get(n, 0.0) for n in names] + [float(seen)], strategy.device)
        return {f"val_{name}": value / max(seen, 1.0) for name, value in zip(names, values, strict=True)}

    def _task_metrics(self, runner) -> dict[str, float] | None:
        """Predictions are shared out over the ranks; the first scores them."""
        task, strategy, (rank, size) = runner.strategy.task, runner.strategy, world()
        count = min(sum(len(d) for d in self.datasets), self.settings["validate_samples"])
        step = max(1, min(CHUNK, -(-count // size)))
        chunks = [list(range(i, min(i + step, count))) for i in range(0, count, step)]
        samples, predictions = {}, {}
        for chunk in self._rounds(runner, chunks, shared=False):
            if chunk is None:
                return None
            read = {n: s for n in chunk if (s := self._read(*self._place(n))) is not None}
            if read:
                with strategy.autocast():
                    predictions |= zip(read, task.predict_samples(list(read.values())), strict=True)
                samples |= read
        if size > 1:
            parts: list = [None] * size
            dist.gather_object(predictions, parts if rank == 0 else None)
            predictions = {number: made for part in parts for number, made in (part or {}).items()}
        if rank or not predictions:
            return {}
        # The images of the other ranks are read here rather than sent.
        for number in sorted(set(predictions) - set(samples)):
            samples[number] = self._read(*self._place(number))
        numbers = [number for number in sorted(predictions) if samples[number] is not None]
        return {
            name: float(value)
            for name, value in task.validate([samples[n] for n in numbers], [predictions[n] for n in numbers]).items()
        }


_REMEDY = "; repair it, or train without validation: --cfg-options val_data=None"

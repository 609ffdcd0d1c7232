"""Batches of the training stream, with the place to resume after each."""

from __future__ import annotations

import atexit
import glob
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from functools import partial

import torch

from unimed.data.mixture import DataError, KeyedDatasets, Mixture, Plan, balanced_weights, seeded
from unimed.engine.shutdown import ignore_signals
from unimed.evaluation.tables import markdown_table
from unimed.registry import DATASETS

#: Keys of an entry of a mixture beside its `dataset`.
SINGLE = ("weight", "name", "task", "needs")
#: Seconds after which a rank that waits for a data worker looks whether it is still there.
LOOK_S = 5.0


class Collate:
    """The task's collator in a worker: unwraps samples, draws with the batch's own seed, notes what was broken.

    A sample that only the collator finds unusable is named and replaced as an unreadable one is.
    """

    def __init__(self, collator, seed: int, datasets: KeyedDatasets | None = None):
        self.collator, self.seed, self.datasets = collator, seed, datasets

    def __call__(self, items):
        samples = [sample for (sample, _), _ in items]
        broken = [record for (_, records), _ in items for record in records]
        words = (self.seed, 5, items[0][1].position)
        try:
            with seeded(*words):
                batch = self.collator(samples)
        except Exception:  # whatever a collator raises; what lies in no single sample is raised again below
            if self.datasets is None:
                raise
            with seeded(*words):
                samples, found = self.datasets.sound(items, self.collator)
            if not found:
                raise
            broken += found
            with seeded(*words):
                batch = self.collator(samples)
        return batch, {"broken": broken, "samples": len(samples)}


class _WithKey:
    def __init__(self, datasets: KeyedDatasets):
        self.datasets = datasets

    def __getitem__(self, key):
        return self.datasets[key], key


def build_datasets(config: Mapping, tell: bool = False) -> tuple[list, list[str], list[float] | None, dict]:
    """Datasets, names, weights and options of a `train_data`, `val_data` or `test_data` entry.

    An entry of a mixture that `needs` a path (or a pattern) is left out where nothing is there. `balance` weighs the
    rest (`unimed.data.mixture.balanced_weights`).

    Args:
        tell: print a table of what remains and what is left out, where entries may be left out.

    Raises:
        DataError: an unknown key, or nothing remains.
    """
    if "mixture" not in config:
        return [DATASETS.build(config)], [str(config["type"])], None, {}
    entries, options = config["mixture"], {k: v for k, v in config.items() if k != "mixture"}
    balance = options.pop("balance", None)
    datasets, kept, absent = [], [], []
    for number, entry in enumerate(entries):
        unknown = set(entry) - {"dataset", *SINGLE}
        if unknown:
            valid = ", ".join(("dataset", *SINGLE))
            raise DataError(f"mixture entry {number}: unknown key {sorted(unknown)[0]!r}; valid: {valid}")
        name, needs = entry.get("name", f"{entry['dataset']['type']}#{number}"), entry.get("needs")
        if needs is not None and not glob.glob(str(needs)):
            absent.append((name, entry.get("task", ""), f"{needs} is not there"))
            continue
        dataset = DATASETS.build(entry["dataset"])
        if needs is not None and not len(dataset):
            absent.append((name, entry.get("task", ""), "no sample"))
            continue
        datasets.append(dataset)
        kept.append({**entry, "name": name})
    if not datasets:
        raise DataError(f"no data set of the mixture is there: {'; '.join(f'{n}: {why}' for n, _, why in absent)}")
    weights = [entry.get("weight", 1.0) for entry in kept] if any("weight" in e for e in kept) else None
    if balance is not None:
        temperatures = {f"{name}_temperature": value for name, value in dict(balance).items()}
        if unknown := set(temperatures) - {"task_temperature", "dataset_temperature"}:
            raise DataError(f"balance: unknown key {sorted(unknown)[0].split('_')[0]!r}; valid: task, dataset")
        tasks = [entry.get("task", "") for entry in kept]
        weights = balanced_weights([len(d) for d in datasets], tasks, **temperatures, factors=weights)
    if tell and any(entry.get("needs") is not None for entry in entries):
        print(mixture_table(kept, [len(dataset) for dataset in datasets], weights, absent), flush=True)
    return datasets, [entry["name"] for entry in kept], weights, options


def mixture_table(kept, lengths, weights, absent) -> str:
    """What a mixture holds, with the fraction of the stream each set gets, and what was left out and why."""
    total = sum(lengths if weights is None else weights)
    rows = [
        {"data set": entry["name"], "task": entry.get("task", ""), "samples": length, "of the stream": weight / total}
        for entry, length, weight in zip(kept, lengths, lengths if weights is None else weights, strict=True)
    ]
    text = markdown_table(rows)
    if absent:
        text += f"\nleft out ({len(absent)}):\n" + "\n".join(f"  {name}: {why}" for name, _, why in absent) + "\n"
    return text


class Stream:
    """Endless micro-batches of one rank. `state` is where to go on after the batch returned last.

    Args:
        restarts: how often data workers that died or hang may be started anew.
        timeout_s: how long a worker may take for a batch; 0 for ever.
    """

    def __init__(
        self, config: Mapping, collator, *, batch_size, rank, world_size, seed, num_workers=0, restarts=3, timeout_s=0
    ):
        datasets, names, weights, options = build_datasets(config, tell=rank == 0)
        unknown = set(options) - {"group_by_length", "token_budget", "shuffle", "shuffle_buffer"}
        if unknown:
            raise DataError(
                f"train_data: unknown key {sorted(unknown)[0]!r}; "
                "valid: mixture, balance, group_by_length, token_budget, shuffle, shuffle_buffer"
            )
        shuffle, buffer = options.pop("shuffle", True), options.pop("shuffle_buffer", 0)
        groups = [getattr(dataset, "groups", None) for dataset in datasets]
        length_of = None
        if all(hasattr(dataset, "length_of") for dataset in datasets):

            def length_of(key):
                return datasets[key.dataset].length_of(key.index)

        self.plan = Plan(
            Mixture([len(d) for d in datasets], weights, seed, shuffle, buffer, groups),
            batch_size,
            world_size,
            length_of=length_of,
            **options,
        )
        keyed = KeyedDatasets(datasets, names, seed, write=getattr(collator, "write", None))
        self.dataset = _WithKey(keyed)
        self.collate, self.rank, self.num_workers = Collate(collator, seed, keyed), rank, num_workers
        self.names, self.restarts, self.timeout_s = names, restarts, timeout_s
        self.length = sum(len(dataset) for dataset in datasets)
        self.state = {"window": 0, "used": 0}
        self._iterator, self._ahead, self._at_end = None, deque(), None

    def restore(self, state: Mapping[str, int]) -> None:
        self._stop_workers()
        self.state = dict(state)

    def __iter__(self):
        return self

    def __next__(self):
        """(batch, information): information has `broken`, `samples` and `keys`.

        Raises:
            DataError: a worker died more often than allowed, or a run of samples is broken.
        """
        began = time.monotonic()
        while True:
            if self._iterator is None:
                self._start()
                began = time.monotonic()
            try:
                batch, information = next(self._iterator)
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                # DataLoader has no error class of its own for a worker that takes too long, and with a long time-out
                # it would find a dead one only at its end: so its time-out is short, and asking again goes on waiting.
                late = str(error).startswith("DataLoader timed out")
                if late and not (self.timeout_s and time.monotonic() - began >= self.timeout_s):
                    continue
                if not late and not self._a_worker_died():
                    raise
                what = f"gave nothing for {self.timeout_s} s" if late else "died"
                waiting = f"samples in flight: {self.in_flight()}"
                self._stop_workers()
                self.restarts -= 1
                if self.restarts < 0:
                    keeps = f"time-out: a data worker {what} again" if late else "data workers keep dying"
                    reason = "" if late else f": {error}"
                    raise DataError(f"{keeps}; {waiting}{reason}") from error
                print(f"a data worker {what} and is started anew; {waiting}: {error}", flush=True)
                continue
            keys, self.state = self._ahead.popleft()
            return batch, {**information, "keys": keys}

    def in_flight(self) -> list[str]:
        """Names of the first samples that were asked for and have not come."""
        waiting = [f"{self.names[k.dataset]}[{k.index}]" for keys, _ in list(self._ahead)[:4] for k in keys]
        return waiting[:16]

    def close(self) -> None:
        """End the data workers, also one that hangs."""
        self._stop_workers()

    def _stop_workers(self) -> None:
        self._iterator = None
        if self._at_end is not None:
            self._at_end()

    def _a_worker_died(self) -> bool:
        # Its death shows as DataLoader's own error, or as a pipe that breaks while a batch is fetched from it; in the
        # second case the process may still be on its way out.
        workers = getattr(self._iterator, "_workers", ())
        for worker in workers:
            worker.join(timeout=1 / len(workers))
        return any(not worker.is_alive() for worker in workers)

    def _start(self) -> None:
        self._ahead: deque = deque()

        def sampler():
            for keys, state in self.plan.walk(self.rank, **self.state):
                self._ahead.append((keys, state))
                yield keys

        handler = signal.getsignal(signal.SIGCHLD)
        self._iterator = iter(
            torch.utils.data.DataLoader(
                self.dataset,
                batch_sampler=sampler(),
                collate_fn=self.collate,
                num_workers=self.num_workers,
                timeout=min(LOOK_S, self.timeout_s or LOOK_S) if self.num_workers else 0,
                worker_init_fn=ignore_signals,
                # DataLoader draws a base seed for its workers; a generator of its own keeps the global one untouched.
                generator=torch.Generator().manual_seed(0),
            )
        )
        if self.num_workers:
            # A stream that nobody closed must not keep its process from ending. Where it is collected, a weak
            # reference is told before DataLoader waits five seconds for each worker; at exit, what was registered last.
            kill = partial(_kill, list(self._iterator._workers), os.getpid())
            atexit.register(kill)
            self._at_end = weakref.finalize(self, kill)
            self._at_end.atexit = False
        # DataLoader's own handler raises the death of a worker wherever the main process happens to be, in the middle
        # of a step too. Without it the death is found, within seconds, when the next batch is asked for, where
        # `__next__` deals with it.
        if self.num_workers and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _kill(workers: list, parent: int) -> None:
    """End the processes of `parent`, if this is it (and not a copy of it).

    Not by terminate(): workers ignore SIGTERM, which is meant for the process that trains.
    """
    if os.getpid() != parent:
        return
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    workers.clear()  # it is also called at exit


def to_device(value, device):
    """Tensors of a batch, in dicts, lists and tuples, on `device`; everything else as it is."""
    if torch.is_tensor(value):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(torch.is_tensor(v) or isinstance(v, Mapping) for v in value):
        return type(value)(to_device(item, device) for item in value)
    return value

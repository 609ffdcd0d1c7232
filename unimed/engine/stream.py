"""Batches of the training stream, with the place to resume after each."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Mapping

import torch

from unimed.data.mixture import DataError, KeyedDatasets, Mixture, Plan, seeded
from unimed.registry import DATASETS

SINGLE = ("weight", "name")


class Collate:
    """The task's collator in a worker: unwraps samples, draws with the batch's own seed, notes what was broken."""

    def __init__(self, collator, seed: int):
        self.collator, self.seed = collator, seed

    def __call__(self, items):
        samples = [sample for (sample, _), _ in items]
        broken = [record for (_, records), _ in items for record in records]
        with seeded(self.seed, 5, items[0][1].position):
            batch = self.collator(samples)
        return batch, {"broken": broken, "samples": len(samples)}


class _WithKey:
    def __init__(self, datasets: KeyedDatasets):
        self.datasets = datasets

    def __getitem__(self, key):
        return self.datasets[key], key


def build_datasets(config: Mapping) -> tuple[list, list[str], list[float] | None, dict]:
    """Datasets, names, weights and options of a `train_data`, `val_data` or `test_data` entry."""
    if "mixture" not in config:
        return [DATASETS.build(config)], [str(config["type"])], None, {}
    entries, options = config["mixture"], {k: v for k, v in config.items() if k != "mixture"}
    datasets, names = [], []
    for number, entry in enumerate(entries):
        unknown = set(entry) - {"dataset", *SINGLE}
        if unknown:
            raise DataError(f"mixture entry {number}: unknown key {sorted(unknown)[0]!r}; valid: dataset, weight, name")
        datasets.append(DATASETS.build(entry["dataset"]))
        names.append(entry.get("name", f"{entry['dataset']['type']}#{number}"))
    weights = [entry.get("weight", 1.0) for entry in entries] if any("weight" in e for e in entries) else None
    return datasets, names, weights, options


class Stream:
    """Endless micro-batches of one rank. `state` is where to go on after the batch returned last."""

    def __init__(self, config: Mapping, collator, *, batch_size, rank, world_size, seed, num_workers=0, deaths=3):
        datasets, names, weights, options = build_datasets(config)
        unknown = set(options) - {"group_by_length", "token_budget", "shuffle"}
        if unknown:
            raise DataError(
                f"train_data: unknown key {sorted(unknown)[0]!r}; "
                "valid: mixture, group_by_length, token_budget, shuffle"
            )
        shuffle = options.pop("shuffle", True)
        length_of = None
        if all(hasattr(dataset, "length_of") for dataset in datasets):

            def length_of(key):
                return datasets[key.dataset].length_of(key.index)

        self.plan = Plan(
            Mixture([len(d) for d in datasets], weights, seed, shuffle),
            batch_size,
            world_size,
            length_of=length_of,
            **options,
        )
        self.dataset = _WithKey(KeyedDatasets(datasets, names, seed, write=getattr(collator, "write", None)))
        self.collate, self.rank, self.num_workers = Collate(collator, seed), rank, num_workers
        self.names, self.deaths = names, deaths
        self.state = {"window": 0, "used": 0}
        self._iterator = None

    def restore(self, state: Mapping[str, int]) -> None:
        self.state, self._iterator = dict(state), None

    def __iter__(self):
        return self

    def __next__(self):
        """(batch, information): information has `broken`, `samples` and `keys`.

        Raises:
            DataError: a worker died more often than allowed, or a run of samples is broken.
        """
        while True:
            if self._iterator is None:
                self._start()
            try:
                batch, information = next(self._iterator)
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                if not self._a_worker_died():
                    raise
                self.deaths -= 1
                waiting = [f"{self.names[k.dataset]}[{k.index}]" for keys, _ in list(self._ahead)[:4] for k in keys]
                if self.deaths < 0:
                    raise DataError(f"data workers keep dying; samples in flight: {waiting[:16]}: {error}") from error
                print(f"a data worker died and is started anew; samples in flight: {waiting[:16]}: {error}", flush=True)
                self._iterator = None
                continue
            keys, self.state = self._ahead.popleft()
            return batch, {**information, "keys": keys}

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
                # DataLoader draws a base seed for its workers; a generator of its own keeps the global one untouched.
                generator=torch.Generator().manual_seed(0),
            )
        )
        # DataLoader's own handler raises the death of a worker wherever the main process happens to be, in the middle
        # of a step too. Without it the death is found, within seconds, when the next batch is asked for, where
        # `__next__` deals with it.
        if self.num_workers and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def to_device(value, device):
    """Tensors of a batch, in dicts, lists and tuples, on `device`; everything else as it is."""
    if torch.is_tensor(value):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(torch.is_tensor(v) or isinstance(v, Mapping) for v in value):
        return type(value)(to_device(item, device) for item in value)
    return value

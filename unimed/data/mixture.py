"""Mixing and sampling of data sets: which sample comes when is a pure function of the seed, for exact resuming.

Nothing here remembers what was drawn. A mixture maps a global position to (dataset, index, epoch); a plan maps a window
of positions to batches. Resuming is asking for the next window, and two ranks share one stream by taking turns.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unimed.io.remote import redacted

BLOCK = 4096


class Key(NamedTuple):
    """One place of the stream: the dataset's number in the mixture, the index in it, how often it was seen before."""

    dataset: int
    index: int
    epoch: int
    position: int


class BrokenSample(NamedTuple):
    """A record that could not be read: where it is and why."""

    dataset: str
    index: int
    error: str

    def __str__(self) -> str:
        return f"{self.dataset}[{self.index}]: {self.error}"


class DataError(RuntimeError):
    """Data that cannot be used: an empty dataset, weights that make no sense, or too many broken samples in a row."""


def generator(*words: int) -> np.random.Generator:
    """A numpy generator that depends on the given non-negative integers only, on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(word) for word in words])))


class Mixture:
    """An endless stream over several datasets, each drawn with its weight and without repetition within its epochs.

    Args:
        lengths: number of samples of each dataset.
        weights: share of each dataset in the stream, any positive numbers; None means by length.
        seed: of the order.
        shuffle: False keeps the order of a single dataset (for validation).
        buffer: 0 shuffles freely; else data sets with `groups` come one group after the other, in a new order in each
            epoch, and every sample moves by fewer than so many places.
        groups: per dataset where samples that are stored together begin, and the number of all at the end; or None.

    Raises:
        DataError: an empty dataset, or weights that are not positive or do not fit.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        buffer: int = 0,
        groups: Sequence[Sequence[int] | None] | None = None,
    ):
        if not lengths or min(lengths) < 1:
            raise DataError(f"every dataset of a mixture needs at least one sample, got lengths {list(lengths)}")
        weights = list(lengths) if weights is None else list(weights)
        if len(weights) != len(lengths) or not np.isfinite(weights).all() or min(weights) <= 0:
            raise DataError(f"a mixture of {len(lengths)} datasets needs as many positive weights, got {weights}")
        if buffer < 0:
            raise DataError(f"shuffle_buffer must be a number of samples, got {buffer}")
        self.lengths, self.seed, self.shuffle = list(lengths), seed, shuffle
        self.buffer, self.groups = buffer, groups or [None] * len(lengths)
        self.weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self._counts = [np.zeros(len(lengths), dtype=np.int64)]  # draws of each dataset before block b
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, position: int) -> Key:
        """The key at a position >= 0; there is no last one."""
        block, offset = divmod(position, BLOCK)
        choices, ranks = self._block(block)
        dataset = int(choices[offset])
        epoch, place = divmod(int(ranks[offset]), self.lengths[dataset])
        return Key(dataset, int(self._order(dataset, epoch)[place]), epoch, position)

    def _draw(self, block: int) -> np.ndarray:
        if len(self.lengths) == 1:
            return np.zeros(BLOCK, dtype=np.int64)
        return generator(self.seed, 1, block).choice(len(self.lengths), size=BLOCK, p=self.weights)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        if block not in self._blocks:
            while len(self._counts) <= block:
                drawn = self._draw(len(self._counts) - 1)
                self._counts.append(self._counts[-1] + np.bincount(drawn, minlength=len(self.lengths)))
            choices = self._draw(block)
            ranks = np.empty(BLOCK, dtype=np.int64)
            for dataset in range(len(self.lengths)):
                mine = choices == dataset
                ranks[mine] = self._counts[block][dataset] + np.arange(mine.sum())
            self._blocks = {block: (choices, ranks), **{k: v for k, v in self._blocks.items() if k == block - 1}}
        return self._blocks[block]

    def _order(self, dataset: int, epoch: int) -> np.ndarray:
        if (dataset, epoch) not in self._orders:
            length = self.lengths[dataset]
            if self.shuffle and self.buffer and self.groups[dataset] is not None:
                order = self._by_groups(dataset, epoch)
            elif self.shuffle:
                order = generator(self.seed, 2, dataset, epoch).permutation(length)
            else:
                order = np.arange(length)
            self._orders = {k: v for k, v in self._orders.items() if k[0] != dataset or k[1] == epoch - 1}
            self._orders[dataset, epoch] = order
        return self._orders[dataset, epoch]

    def _by_groups(self, dataset: int, epoch: int) -> np.ndarray:
        draw, starts = generator(self.seed, 2, dataset, epoch), np.asarray(self.groups[dataset])
        turns = draw.permutation(len(starts) - 1)
        order = np.concatenate([np.arange(starts[turn], starts[turn + 1]) for turn in turns])
        # Sorted by jittered places nothing passes what is `buffer` places away, as in a buffer of that size.
        return order[np.argsort(np.arange(len(order)) + draw.uniform(0, self.buffer, len(order)), kind="stable")]


def balanced_weights(
    lengths: Sequence[int],
    tasks: Sequence[str],
    task_temperature: float = 1.0,
    dataset_temperature: float = 1.0,
    factors: Sequence[float] | None = None,
) -> list[float]:
    """Weights of data sets that balance tasks, and the data sets of each task, by temperatures (arXiv 1910.10683).

    A task with N samples in all is drawn with a weight of N^(1 / task_temperature), and within it a data set of n
    samples with n^(1 / dataset_temperature). 1 draws by size, infinity draws all alike.

    Args:
        tasks: of each data set.
        factors: multiply the weight of a data set within its task.

    Returns:
        weights that sum to 1.

    Raises:
        DataError: a temperature below 1.
    """
    for name, value in (("task", task_temperature), ("dataset", dataset_temperature)):
        if not value >= 1:
            raise DataError(f"balance: temperature {name}={value} must be at least 1")
    sizes = np.asarray(lengths, dtype=np.float64)
    within = sizes ** (1 / dataset_temperature) * (1.0 if factors is None else np.asarray(factors, dtype=np.float64))
    weights = np.zeros(len(sizes))
    for task in set(tasks):
        mine = np.array([own == task for own in tasks])
        weights[mine] = sizes[mine].sum() ** (1 / task_temperature) * within[mine] / within[mine].sum()
    return (weights / weights.sum()).tolist()


class Plan:
    """Windows of the stream cut into batches; rank r takes every `world_size`-th batch of a window.

    Args:
        mixture: the stream.
        batch_size: samples per rank and micro-batch.
        world_size: ranks that share the stream.
        group_by_length: 0, or the number of batches per rank over which samples of like length are put together.
        token_budget: 0, or the number of tokens a micro-batch may hold; batches then vary in size and `batch_size`
            says how many samples per rank a window draws on average.
        length_of: Key -> number of tokens; needed by the last two.
    """

    def __init__(
        self, mixture: Mixture, batch_size: int, world_size: int = 1, group_by_length=0, token_budget=0, length_of=None
    ):
        if (group_by_length or token_budget) and length_of is None:
            raise DataError("group_by_length and token_budget need datasets with a method length_of(index) -> int")
        self.mixture, self.batch_size, self.world_size = mixture, batch_size, world_size
        self.group, self.budget, self.length_of = group_by_length, token_budget, length_of
        self.window_size = batch_size * world_size * max(1, group_by_length)

    def batches(self, window: int) -> list[list[Key]]:
        """All batches of a window, over all ranks; their number is a multiple of `world_size`."""
        start = window * self.window_size
        keys = [self.mixture[position] for position in range(start, start + self.window_size)]
        if not (self.group or self.budget):
            return [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]
        lengths = {key.position: int(self.length_of(key)) for key in keys}
        keys.sort(key=lambda key: (-lengths[key.position], key.position))
        if self.budget:
            batches = self._within_budget(keys, lengths)
        else:
            batches = [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]
        # Ranks that work at the same time get neighbours in length; the order of these turns is shuffled.
        turns = [batches[i : i + self.world_size] for i in range(0, len(batches), self.world_size)]
        order = generator(self.mixture.seed, 3, window).permutation(len(turns))
        return [batch for turn in order for batch in turns[turn]]

    def _within_budget(self, keys: list[Key], lengths: dict[int, int]) -> list[list[Key]]:
        from unimed.data.collate.packing import first_fit

        bins = first_fit([lengths[key.position] for key in keys], self.budget)
        batches = [[keys[i] for i in members] for members in bins]
        while len(batches) % self.world_size:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            if len(batches[largest]) < 2:
                raise DataError(
                    f"a window of {len(keys)} samples cannot be shared by {self.world_size} ranks within "
                    f"token_budget={self.budget}; raise batch_size, group_by_length or token_budget"
                )
            batch = batches.pop(largest)
            batches += [batch[::2], batch[1::2]]
        return batches

    def walk(self, rank: int, window: int = 0, used: int = 0) -> Iterator[tuple[list[Key], dict[str, int]]]:
        """The batches of one rank from a place on, each with the state to resume *after* it."""
        while True:
            mine = self.batches(window)[rank :: self.world_size]
            for number in range(used, len(mine)):
                last = number + 1 == len(mine)
                yield mine[number], {"window": window + last, "used": 0 if last else number + 1}
            window, used = window + 1, 0


@contextlib.contextmanager
def seeded(*words: int):
    """Inside, the global generators of random, numpy and torch depend on `words` only; afterwards they are as before.

    A dataset may use any of the three for augmentation, without knowing of workers, ranks or resuming.
    """
    import torch

    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    draws = generator(*words).integers(0, 2**32, size=3, dtype=np.uint64)
    random.seed(int(draws[0]))
    np.random.seed(int(draws[1]))
    torch.default_generator.manual_seed(int(draws[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


class KeyedDatasets:
    """Several map-style datasets read by `Key`; each sample is drawn with its own seed, and a broken one is replaced.

    Returns of `[key]`: (sample, tuple of BrokenSample): the first readable sample from `key.index` on, or where the
    data set's own `alternative(index, attempt)` says.

    Args:
        write: Sample -> Sample, called with the sample's own seed (the dialect of a model, which draws wordings).

    Raises:
        DataError: `attempts` neighbours in a row are broken.
    """

    def __init__(self, datasets: Sequence[Any], names: Sequence[str], seed: int = 0, attempts: int = 10, write=None):
        self.datasets, self.names, self.seed, self.attempts = list(datasets), list(names), seed, attempts
        self.write = write

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, key: Key):
        return self.read(key)

    def place(self, key: Key, attempt: int) -> int:
        """Index of the sample that stands in for `key` once `attempt` others were broken."""
        dataset = self.datasets[key.dataset]
        jump = getattr(dataset, "alternative", None)
        return jump(key.index, attempt) if jump and attempt else (key.index + attempt) % len(dataset)

    def read(self, key: Key, first: int = 0, check: Callable[[Any], Any] | None = None):
        """(sample, tuple of BrokenSample): the first one from the attempt `first` on that reads and passes `check`.

        Raises:
            DataError: `attempts` in a row are broken.
        """
        dataset, broken = self.datasets[key.dataset], []
        for attempt in range(first, first + self.attempts):
            index = self.place(key, attempt)
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(key.epoch)
            with seeded(self.seed, 4, key.dataset, index, key.epoch):
                try:
                    sample = dataset[index]
                    if self.write is not None:
                        sample = self.write(sample)
                    if check is not None:
                        check(sample)
                    return sample, tuple(broken)
                except Exception as error:  # whatever a reader raises, one record must not end a run of days
                    broken.append(self.broken(key, attempt, error))
        listed = "\n  ".join(str(b) for b in broken)
        raise DataError(f"{self.attempts} samples in a row are broken:\n  {listed}")

    def broken(self, key: Key, attempt: int, error: Exception) -> BrokenSample:
        """What is to be said of a sample that cannot be used."""
        return BrokenSample(
            self.names[key.dataset], self.place(key, attempt), redacted(f"{type(error).__name__}: {error}")
        )

    def sound(self, items: Sequence, collate: Callable[[list], Any]) -> tuple[list, list[BrokenSample]]:
        """The samples of a batch that cannot be collated, those that break it replaced as unreadable ones are.

        Args:
            items: ((sample, what was broken before it), key) for each place of the batch.
            collate: makes a batch of a list of samples.

        Returns:
            samples that are collated one by one without an error, and what was found broken.

        Raises:
            DataError: too many in a row are broken.
        """
        samples, found = [], []
        for (sample, before), key in items:
            try:
                collate([sample])
            except Exception as error:  # an empty question, an image no model can read: as good as unreadable
                found.append(self.broken(key, len(before), error))
                sample, others = self.read(key, len(before) + 1, lambda one: collate([one]))
                found += others
            samples.append(sample)
        return samples, found

"""A sample that only the collator finds unusable costs itself, not the run."""

import os
import subprocess
import sys

import pytest

from unimed.data.mixture import DataError, KeyedDatasets, Mixture
from unimed.engine.stream import Collate


class Numbers:
    """Samples are their index; those named are broken when they are read, or when they are collated."""

    def __init__(self, length=20, unreadable=(), unusable=()):
        self.length, self.unreadable, self.unusable = length, set(unreadable), set(unusable)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.unreadable:
            raise OSError(f"{index} cannot be read")
        return index

    def collate(self, samples):
        for sample in samples:
            if sample in self.unusable:
                raise ValueError(f"sample {sample}: the question is empty")
        return list(samples)


def batch(data, count=4):
    keyed = KeyedDatasets([data], ["numbers"], attempts=5)
    keys = [Mixture([len(data)], shuffle=False)[place] for place in range(count)]
    return Collate(data.collate, 0, keyed)([(keyed[key], key) for key in keys])


def test_a_sound_batch_is_as_it_was():
    values, information = batch(Numbers())
    assert values == [0, 1, 2, 3] and information == {"broken": [], "samples": 4}


@pytest.mark.parametrize("unreadable", [(), (3,), (1, 3)])
def test_the_unusable_one_is_named_and_replaced(unreadable):
    data = Numbers(unreadable=unreadable, unusable=(2,))
    values, information = batch(data)
    assert len(values) == 4 and not set(values) & {2, *unreadable}
    named = {(record.index, record.dataset) for record in information["broken"]}
    assert named >= {(2, "numbers"), *((index, "numbers") for index in unreadable)}
    assert any("ValueError: sample 2: the question is empty" in str(record) for record in information["broken"])
    assert batch(data) == (values, information)  # the same again


def test_too_many_in_a_row_end_with_their_names():
    with pytest.raises(DataError, match="question is empty"):
        batch(Numbers(unusable=range(2, 9)))


def test_an_error_of_the_collator_itself_is_not_hidden():
    data = Numbers()

    def fails(samples):
        if len(samples) > 1:
            raise ValueError("batches are broken")
        return samples

    data.collate = fails
    with pytest.raises(ValueError, match="batches are broken"):
        batch(data)


_LEFT_OPEN = """
import sys
from unimed.engine.stream import Stream
from unimed.registry import DATASETS

@DATASETS.register_module()
class Numbers:
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return index

if __name__ == "__main__":
    data = dict(mixture=[dict(dataset=dict(type="Numbers"))])
    stream = Stream(data, list, batch_size=2, rank=0, world_size=1, seed=5, num_workers=2)
    next(stream)
    print(*(worker.pid for worker in stream._iterator._workers), flush=True)
"""


def test_a_stream_that_nobody_closes_does_not_keep_its_process(tmp_path):
    """Its workers ignore SIGTERM; the program ended only when somebody killed it."""
    (tmp_path / "program.py").write_text(_LEFT_OPEN)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in workers)

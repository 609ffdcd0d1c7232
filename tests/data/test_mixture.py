"""The stream of samples is a pure function of the seed: any place can be returned to, and ranks share one stream."""

import itertools
import random

import numpy as np
import pytest
import torch

from unimed.data.mixture import BLOCK, DataError, KeyedDatasets, Mixture, Plan, seeded


def test_every_sample_once_per_epoch():
    mixture = Mixture([7], seed=3)
    keys = [mixture[i] for i in range(21)]
    for epoch in range(3):
        assert sorted(k.index for k in keys if k.epoch == epoch) == list(range(7))
    assert [k.index for k in keys[:7]] != [k.index for k in keys[7:14]]


def test_weights_hold_and_no_repetition_within_an_epoch():
    mixture = Mixture([50, 10], [3.0, 1.0], seed=0)
    keys = [mixture[i] for i in range(8000)]
    assert np.mean([k.dataset == 0 for k in keys]) == pytest.approx(0.75, abs=0.02)
    for dataset, length in ((0, 50), (1, 10)):
        mine = [k for k in keys if k.dataset == dataset]
        for start in range(0, len(mine) - length, length):
            assert len({k.index for k in mine[start : start + length]}) == length


def test_any_place_is_reached_without_the_ones_before():
    first, second = Mixture([50, 10], [3, 1], seed=5), Mixture([50, 10], [3, 1], seed=5)
    walked = [first[i] for i in range(2 * BLOCK + 10)]
    assert second[2 * BLOCK + 3] == walked[2 * BLOCK + 3]
    assert second[7] == walked[7]


@pytest.mark.parametrize("options", [{}, dict(group_by_length=4), dict(token_budget=20, group_by_length=4)])
def test_walk_resumes_and_ranks_share(options):
    lengths = [3 + i % 6 for i in range(40)]

    def plan(world_size):
        return Plan(Mixture([40], seed=1), 2, world_size, length_of=lambda key: lengths[key.index], **options)

    walked = list(itertools.islice(plan(2).walk(1), 25))
    for cut in range(24):
        keys, state = walked[cut]
        assert list(itertools.islice(plan(2).walk(1, **state), 25 - cut - 1)) == walked[cut + 1 :]
        if "token_budget" in options:
            assert sum(lengths[k.index] for k in keys) <= 20
    size = plan(2).window_size * 3
    seen = []
    for rank in (0, 1):
        for keys, state in plan(2).walk(rank):
            seen += [k.position for k in keys]
            if state["window"] == 3:
                break
    assert sorted(seen) == list(range(size))


def test_length_grouping_needs_lengths():
    with pytest.raises(DataError, match="length_of"):
        Plan(Mixture([4]), 2, group_by_length=3)


@pytest.mark.parametrize("lengths,weights", [([0], None), ([], None), ([3], [0.0]), ([3, 3], [1.0]), ([3], [np.nan])])
def test_senseless_mixtures(lengths, weights):
    with pytest.raises(DataError):
        Mixture(lengths, weights)


def test_seeded_is_repeatable_and_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    plain = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with seeded(1, 2):
        inside = draw()
    assert draw() == plain
    with seeded(1, 2):
        assert draw() == inside
    with seeded(1, 3):
        assert draw() != inside


def test_broken_sample_is_replaced_by_its_neighbour():
    class Data(list):
        def __getitem__(self, index):
            if index in (2, 3):
                raise ValueError("torn")
            return index

    datasets = KeyedDatasets([Data(range(5))], ["numbers"])
    sample, broken = datasets[Mixture([5], shuffle=False)[2]]
    assert sample == 4 and [str(b) for b in broken] == ["numbers[2]: ValueError: torn", "numbers[3]: ValueError: torn"]

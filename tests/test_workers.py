"""Processes that work together: every task once, in order where that is asked for, whatever dies."""

import pytest
from working import Doubling

from unimed.workers import TaskError, WorkersDiedError, as_finished, in_order, own_slot


def test_every_task_is_done_though_processes_die(tmp_path):
    make = Doubling(str(tmp_path), {3: 2, 7: 1})
    assert sorted(as_finished(make, range(12), 2)) == [(number, number * 2) for number in range(12)]
    assert len(list(tmp_path.iterdir())) == 3


def test_results_come_in_order_and_not_too_far_ahead(tmp_path):
    taken = []

    def tasks():
        for number in ["slow", *range(1, 30)]:
            taken.append(number)
            yield number

    results = in_order(Doubling(str(tmp_path), {}), tasks(), 2, ahead=6)
    assert next(results) == "slow" and len(taken) <= 7
    assert list(results) == [number * 2 for number in range(1, 30)]


def test_what_a_task_raises_ends_the_work(tmp_path):
    make = Doubling(str(tmp_path), {})
    with pytest.raises(ValueError, match="no number"):
        list(in_order(make, [1, "raise", 2], 2))
    with pytest.raises(TaskError, match="Local: cannot be sent"):
        list(as_finished(make, ["odd error"], 2))


def test_a_task_that_kills_each_process_is_given_up(tmp_path):
    with pytest.raises(WorkersDiedError, match="3 processes died .the last with code -9"):
        list(as_finished(Doubling(str(tmp_path), {2: 9}), [2], 2, most_deaths=3))


def test_threads_of_processes_and_one_process_alone(tmp_path):
    make = Doubling(str(tmp_path), {})
    assert list(as_finished(make, ["threads"], 2, threads_each=3)) == [(0, "3")]
    assert list(in_order(make, [1, 2], 1)) == [2, 4] and own_slot() is None

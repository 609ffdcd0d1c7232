"""Threads are chosen by what is free, and what somebody set counts."""

import os
import subprocess
import sys
import time

import pytest
import torch

from unimed import threads
from unimed.commands.common import guarded


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (threads.VARIABLE, "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("usable", "busy", "free"), [(8, 0.1, 8), (8, 3.2, 5), (2, 1.0, 1), (2, 2.0, 1), (1.5, 0, 2), (0.5, 0.0, 1)]
)
def test_free_cores(monkeypatch, usable, busy, free):
    monkeypatch.setattr(threads, "usable_cores", lambda: usable)
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    assert threads.free_cores() == free


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_quota_of_the_control_group(monkeypatch, tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(threads, "_GROUP", tmp_path)
    monkeypatch.setattr(threads, "_affinity", lambda: {0, 1, 2, 3})
    assert threads.usable_cores() == (4 if cores is None else cores)


def test_load_is_that_of_the_cores_of_the_affinity(monkeypatch, tmp_path):
    looks = iter(["cpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0\n",
                  "cpu0 5 0 5 0 0 0 0 0\ncpu1 2 0 0 6 2 0 0 0\ncpu2 9 0 0 0 0 0 0 0\n"])  # fmt: skip
    stat = tmp_path / "stat"
    monkeypatch.setattr(threads, "_STAT", stat)
    monkeypatch.setattr(threads, "_affinity", lambda: {0, 1})
    monkeypatch.setattr(threads.time, "sleep", lambda _: stat.write_text(next(looks)))
    stat.write_text(next(looks))
    assert threads.busy_cores() == pytest.approx(1.2)
    monkeypatch.setattr(threads, "_STAT", tmp_path / "nowhere")
    assert threads.busy_cores() == pytest.approx(os.getloadavg()[0], abs=1)


@pytest.mark.skipif(not threads._STAT.is_file(), reason="no /proc/stat")
def test_a_busy_neighbour_is_seen():
    core = min(threads._affinity())
    spin = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as neighbour:
        try:
            time.sleep(0.5)
            assert max(threads.busy_cores() for _ in range(5)) > 0.5
        finally:
            neighbour.kill()


def test_what_is_set_counts_and_everything_is_as_before_afterwards(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "free_cores", lambda: 3)
    with threads.chosen() as count:
        assert count == torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"]) == 3
    assert torch.get_num_threads() == before and "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    with threads.chosen() as count:
        assert count == 2
    monkeypatch.setenv(threads.VARIABLE, "1")
    with threads.chosen() as count:
        assert count == 1
    assert os.environ["OMP_NUM_THREADS"] == "2,1"


def test_a_command_computes_with_them_and_names_a_wrong_number(monkeypatch, capsys):
    seen = []
    monkeypatch.setenv(threads.VARIABLE, "1")
    assert guarded(lambda _: seen.append(torch.get_num_threads()) or 0, None) == 0 and seen == [1]
    monkeypatch.setenv(threads.VARIABLE, "many")
    assert guarded(lambda _: 0, None) == 1
    assert "UNIMED_THREADS='many' is no number of threads" in capsys.readouterr().err

"""One writer per folder, whoever dies, wherever it runs."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from unimed.locks import FolderInUseError, FolderLock, lock_owner

HOLD = """
import sys, time
from unimed.files import FolderLock
lock = FolderLock(sys.argv[1], "training").acquire()
print("held", flush=True)
time.sleep(60)
"""


def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def foreign(folder, age_s):
    """The lock of a process of another machine that was last heard of `age_s` seconds ago."""
    owner = {"process": 1, "host": "node7", "machine": "00000000", "purpose": "training", "since": "x", "token": "t"}
    (folder / ".lock").write_text(json.dumps(owner))
    past = time.time() - age_s
    os.utime(folder / ".lock", (past, past))


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(FolderInUseError, match=rf"training by process {process.pid} on .+ since .+; wait"):
            FolderLock(tmp_path / "run").acquire()
    finally:
        process.kill()
        process.wait()
    with FolderLock(tmp_path / "run", "predicting"):  # the owner was killed: taken over at once
        assert lock_owner(tmp_path / "run" / ".lock")["purpose"] == "predicting"
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_same_process_cannot_hold_it_twice(tmp_path):
    with FolderLock(tmp_path), pytest.raises(FolderInUseError):
        FolderLock(tmp_path).acquire()
    with FolderLock(tmp_path):
        pass


def test_an_owner_of_another_machine_lives_as_long_as_its_heartbeat(tmp_path):
    foreign(tmp_path, age_s=60)
    with pytest.raises(FolderInUseError, match="node7"):
        FolderLock(tmp_path, dead_after_s=120).acquire()
    foreign(tmp_path, age_s=180)
    with FolderLock(tmp_path, dead_after_s=120):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"process": "x"}', b'{"process": -1}', b"\xff\xfe"])
def test_a_torn_lock_locks_nobody_out(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with FolderLock(tmp_path):
        pass


def test_a_number_given_to_another_process_is_not_its_former_owner(tmp_path):
    with FolderLock(tmp_path):
        owner = lock_owner(tmp_path / ".lock")
    if not owner["started"]:
        pytest.skip("this system does not tell when a process started")
    (tmp_path / ".lock").write_text(json.dumps(owner | {"started": "1", "token": "other"}))
    with FolderLock(tmp_path):
        pass


def test_the_heartbeat_is_seen_and_a_lost_lock_noticed(tmp_path):
    with FolderLock(tmp_path, heartbeat_s=0.02) as lock:
        os.utime(lock.path, (1, 1))
        deadline = time.monotonic() + 30
        while lock.path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.path.stat().st_mtime > 2
        lock.check()
        foreign(tmp_path, age_s=0)
        with pytest.raises(FolderInUseError, match="taken over"):
            lock.check()
    assert lock_owner(tmp_path / ".lock")["host"] == "node7"  # that of the new owner stays


def test_beside_the_folder_it_guards(tmp_path):
    with FolderLock(tmp_path / "model", beside=True):
        assert not (tmp_path / "model").exists() and (tmp_path / ".model.lock").is_file()


def _child(lock):
    lock.release()


def test_a_forked_child_does_not_release_it(tmp_path):
    with FolderLock(tmp_path) as lock:
        child = multiprocessing.get_context("fork").Process(target=_child, args=(lock,))
        child.start()
        child.join()
        lock.check()


def _count(folder, times):
    for _ in range(times):
        with FolderLock(folder, wait_s=60):
            count = int((folder / "count").read_text())
            (folder / "count").write_text(str(count + 1))


def test_waiting_processes_take_turns(tmp_path):
    (tmp_path / "count").write_text("0")
    said = []
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(tmp_path, 10)) for _ in range(3)]
    with FolderLock(tmp_path):
        for process in processes:
            process.start()
        time.sleep(0.05)
    with FolderLock(tmp_path, wait_s=60, report=said.append):
        pass
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "count").read_text() == "30"
    assert len(said) <= 1

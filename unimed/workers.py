"""Work spread over processes of one machine: each holds what it needs, and one that dies is replaced.

A task is handed out when a process is free, so that slow tasks hold up nobody; a task whose process died goes to the
next one. Processes end with the one that started them, also where that is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from unimed import threads

#: See `own_slot`.
_slot: int | None = None


class WorkersDiedError(RuntimeError):
    """Processes died again and again without finishing a task: out of memory, or a crash of a library."""


class TaskError(RuntimeError):
    """What a task raised that cannot be sent from its process; the message names kind and text."""


def as_finished(
    make: Callable[[], Callable[[Any], Any]],
    tasks: Iterable,
    count: int,
    *,
    threads_each: int = 1,
    most_deaths: int = 5,
    ahead: int = 0,
) -> Iterator[tuple[int, Any]]:
    """(number of the task from 0, its result) in the order in which tasks are finished.

    Args:
        make: called once in each process; what it returns does the tasks. It, the tasks and the results are pickled.
        tasks: taken as processes get free; they are not held in memory.
        count: of processes.
        threads_each: threads that each of them computes with.
        most_deaths: so many processes in a row may die, or over one task.
        ahead: a task is handed out only while fewer than so many numbers lie between it and the first one that is not
            finished; 0 is no limit.

    Raises:
        WorkersDiedError: see `most_deaths`; the message names the exit code.
        Exception: what `make` or a task raised.
    """
    numbered, again = enumerate(tasks), deque()
    pool: list[_Process] = []
    unfinished: set[int] = set()
    in_a_row, of_task, handed = 0, Counter(), 0

    def following() -> tuple[int, Any] | None:
        nonlocal handed
        if again:
            return again.popleft()
        if ahead and unfinished and handed - min(unfinished) >= ahead:
            return None  # the first one is slow, and what is done meanwhile has to be held
        entry = next(numbered, None)
        if entry is not None:
            handed = entry[0] + 1
            unfinished.add(entry[0])
        return entry

    try:
        while True:
            while (process := next((one for one in pool if one.entry is None), None)) or len(pool) < count:
                if (entry := following()) is None:
                    break
                if process is None:
                    slot = next(number for number in range(count) if number not in {one.slot for one in pool})
                    process = _Process(make, threads_each, slot)
                    pool.append(process)
                if not process.give(entry):
                    pool.remove(process)
                    again.appendleft(entry)
            working = {process.pipe: process for process in pool if process.entry is not None}
            if not working:
                return
            for pipe in wait(list(working)):
                process = working[pipe]
                number = process.entry[0]
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    again.append(process.entry)
                    pool.remove(process)
                    code = process.end()
                    in_a_row, of_task[number] = in_a_row + 1, of_task[number] + 1
                    if max(in_a_row, of_task[number]) >= most_deaths:
                        raise WorkersDiedError(
                            f"{most_deaths} processes died (the last with code {code}) and did not finish what they "
                            "were given; there may be too little memory for so many of them"
                        ) from None
                    continue
                process.entry = None
                if kind == "raised":
                    raise value
                in_a_row = 0
                unfinished.discard(number)
                yield number, value
    finally:
        for process in pool:
            process.end()


def in_order(
    make: Callable[[], Callable[[Any], Any]], tasks: Iterable, count: int, *, ahead: int = 0, **options
) -> Iterator[Any]:
    """The results of tasks in the order of the tasks; with one process they are done in this one.

    Args:
        make, tasks, count, options: of `as_finished`.
        ahead: results held back at most because an earlier one is not there yet; 4 for each process by default.
    """
    if count <= 1:
        work = make()
        yield from map(work, tasks)
        return
    held: dict[int, Any] = {}
    due = 0
    finished = as_finished(make, tasks, count, ahead=ahead or 4 * count, **options)
    with contextlib.closing(finished):
        for number, result in finished:
            held[number] = result
            while due in held:
                yield held.pop(due)
                due += 1


class _Process:
    """A process and its end of the pipe; `entry` is (number, task) while it works."""

    def __init__(self, make, threads_each: int, slot: int):
        self.slot = slot
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, theirs, slot), daemon=True)
        with threads.environment(threads_each):
            self.process.start()
        theirs.close()
        self.entry: tuple[int, Any] | None = None

    def give(self, entry: tuple[int, Any]) -> bool:
        """Hand a task out; False where the process died while it waited."""
        try:
            self.pipe.send(entry[1])
        except ConnectionError:
            self.end()
            return False
        self.entry = entry
        return True

    def end(self) -> int | None:
        """Stop it; returns its exit code."""
        self.pipe.close()  # one that waits for a task ends by itself
        self.process.join(0.5)
        if self.process.exitcode is None:
            self.process.terminate()
            self.process.join(10)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def own_slot() -> int | None:
    """The number of this process among those that work together, from 0; None in any other process."""
    return _slot


def _serve(make, pipe: Connection, slot: int) -> None:
    global _slot
    _slot = slot
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True, name="parent").start()
    work = None
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            work = work or make()
            answer = ("done", work(task))
        except Exception as error:  # noqa: BLE001 - told where the task came from
            answer = ("raised", error)
        try:
            pipe.send(answer)
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001 - what cannot be pickled
            pipe.send(("raised", TaskError(f"{type(answer[1]).__name__}: {answer[1]} ({error})")))


def _end_with(parent) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)

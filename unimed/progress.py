"""Progress of long work: one line at the foot of a terminal, else a line every few seconds, and a copy in a log file.

Anything that takes long says how far it is (`Progress`, `stage`); whether that is shown is decided above: the commands
do (`shown`), a program that imports this package does not. Work lies within work (a slice of a volume of a folder), and
a line tells all of it. A thread prints, so that a single step of minutes is no silence.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

#: Seconds between two lines where the output is no terminal, and in the log.
INTERVAL_S = 10.0
#: Seconds until the first one.
FIRST_S = 5.0
#: Name of the log in a folder of results.
LOG = "progress.jsonl"
_TERMINAL_S = 0.5
#: Processor seconds since the last line from which a process works that says nothing.
_WORKS_S = 0.3
_CLEAR = "\r\x1b[K"

#: Told of every step of the work of this thread or task, see `watched`.
_watch: ContextVar[Callable[[Progress], None] | None] = ContextVar("watch", default=None)
_running: list[Progress] = []
_reporter: _Reporter | None = None


class Progress:
    """Counts the steps of one piece of work; a context manager.

    Args:
        what: of a step, such as "slice"; or, without a total, what is being done, such as "loading the model".
        total: number of steps, where it is known.
        done: steps of earlier runs; they do not count for the time that is left.
    """

    def __init__(self, what: str, total: int | None = None, done: int = 0):
        self.what, self.total, self.done, self.before = what, total, done, done
        self.began = time.monotonic()

    def __enter__(self) -> Progress:
        _running.append(self)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self in _running:
            _running.remove(self)

    def step(self, count: int = 1) -> None:
        """Note that so many more steps are done."""
        self.done += count
        self._tell()

    def at(self, done: int, total: int | None = None) -> None:
        """Note that `done` steps (of `total`) are done; what `progress=` arguments expect."""
        self.done, self.total = done, self.total if total is None else total
        self._tell()

    def _tell(self) -> None:
        if (watch := _watch.get()) is not None:
            watch(self)

    def __str__(self) -> str:
        return self.what if self.total is None else f"{self.what} {min(self.done + 1, self.total)} of {self.total}"

    def left_s(self) -> float | None:
        """Seconds until the end at the pace so far; None before the first step."""
        made = self.done - self.before
        if self.total is None or made < 1:
            return None
        return (time.monotonic() - self.began) / made * max(self.total - self.done, 0)


@contextlib.contextmanager
def watched(watch: Callable[[Progress], None]) -> Iterator[None]:
    """Call `watch` after every step of any work within the block, in this thread or task; what it raises ends the work.

    So a server tells how far a job is, and stops one that nobody waits for.
    """
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


@contextlib.contextmanager
def stage(what: str) -> Iterator[Progress]:
    """Work without steps, such as "loading the model"."""
    with Progress(what) as progress:
        yield progress


def line() -> str:
    """What runs now, the outermost first, how long it has run and about how long it will; "" where nothing does."""
    running = list(_running)
    if not running:
        return ""
    text = f"{', '.join(map(str, running))}; {_clock(time.monotonic() - running[0].began)}"
    lefts = [left for one in running if (left := one.left_s()) is not None]
    return f"{text}, about {_clock(lefts[0])} left" if lefts else text


@contextlib.contextmanager
def shown(stream=None, interval_s: float | None = None, terminal: bool = True) -> Iterator[None]:
    """Print progress while the block runs; blocks within it change nothing.

    Args:
        stream: standard error by default.
        interval_s: seconds between two lines of a file; `INTERVAL_S` by default.
        terminal: False where the work itself draws on a terminal; lines are then for files alone.
    """
    global _reporter
    if _reporter is not None:
        yield
        return
    _reporter = _Reporter(stream, INTERVAL_S if interval_s is None else interval_s, terminal)
    _reporter.start()
    try:
        yield
    finally:
        reporter, _reporter = _reporter, None
        reporter.stop()


@contextlib.contextmanager
def logged(folder: str | Path) -> Iterator[None]:
    """Also write the lines to `folder`/progress.jsonl while the block runs, with a line for its beginning and end."""
    path = Path(folder) / LOG
    reporter = _reporter
    if reporter is None:
        yield
        return
    before, reporter.log = reporter.log, path
    reporter.write_log("begun")
    try:
        yield
    except BaseException as error:
        reporter.write_log(f"stopped: {type(error).__name__}")
        raise
    else:
        reporter.write_log("finished")
    finally:
        reporter.log = before


class _Reporter:
    def __init__(self, stream, interval_s: float, terminal: bool):
        self.stream, self.interval_s, self.terminal = stream, interval_s, terminal
        self.log: Path | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.began, self._spent = time.monotonic(), time.process_time()
        self._open, self._last = False, self.began - max(interval_s - FIRST_S, 0)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.clear()

    def _run(self) -> None:
        while not self._ended.wait(min(_TERMINAL_S, self.interval_s)):
            with contextlib.suppress(OSError, ValueError):  # the reader of a pipe has gone, or the stream was closed
                self.tick()

    def tick(self, now: float | None = None) -> None:
        """Show how far things are; the line of a terminal is replaced, elsewhere one is added per interval."""
        stream, text = self.stream or sys.stderr, line() or self._unnamed()
        now = time.monotonic() if now is None else now
        due = now - self._last >= self.interval_s
        if due:
            self._last, self._spent = now, time.process_time()
            if text:
                self.write_log(text)
        if stream.isatty():
            if text and self.terminal:
                stream.write(f"{_CLEAR}{text[:200]}")
                stream.flush()
                self._open = True
        elif text and due:
            stream.write(f"{text}\n")
            stream.flush()

    def _unnamed(self) -> str:
        """Work without a name of its own, such as the import of libraries, is no silence; a server that waits is."""
        if time.process_time() - self._spent < _WORKS_S:
            return ""
        return f"working; {_clock(time.monotonic() - self.began)}"

    def clear(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(OSError, ValueError):
                (self.stream or sys.stderr).write(_CLEAR)
                (self.stream or sys.stderr).flush()

    def write_log(self, text: str) -> None:
        if self.log is None:
            return
        with contextlib.suppress(OSError):  # a full disk must not stop work for the sake of its log
            self.log.parent.mkdir(parents=True, exist_ok=True)
            row = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "progress": text}
            with open(self.log, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


def clear() -> None:
    """Take the line of a terminal away before something else is printed."""
    if _reporter is not None:
        _reporter.clear()


def told() -> None:
    """Note that a line about the work was printed just now, so that none is due for a while."""
    if _reporter is not None:
        _reporter._last = time.monotonic()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"

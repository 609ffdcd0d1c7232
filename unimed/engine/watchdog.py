"""Watchdog: a rank, a reader or an exchange that hangs ends the run with a line that says where."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from unimed.engine import errors


class Watchdog:
    """Ends this process when nothing has happened for too long. `beat` says that something has, and what comes next.

    Args:
        limit_s: seconds without a beat after which the process is ended with code 1; 0 never.
        folder: where the stacks of all threads are written, as `hang_rank<N>.txt`.
        rank: of this process.
    """

    def __init__(self, limit_s: float, folder: Path, rank: int = 0):
        self.limit_s, self.folder, self.rank = limit_s, folder, rank
        self._last, self._doing, self._waiting = time.monotonic(), "", False
        self._details: Callable[[], str] | None = None
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        self.beat("starting")
        if self.limit_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def beat(self, doing: str, waiting: bool = False, details: Callable[[], str] | None = None) -> None:
        """Note what is done from now on.

        Args:
            waiting: it may be another rank that this one waits for.
            details: asked for more, such as samples in flight, when it takes too long.
        """
        self._doing, self._waiting, self._details, self._last = doing, waiting, details, time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.limit_s / 4)):
            if time.monotonic() - self._last > self.limit_s:
                self._end()

    def _end(self) -> None:
        path = self.folder / f"hang_rank{self.rank}.txt"
        try:
            with open(path, "w") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            path = Path("not written")
        more = f" ({self._details()})" if self._details else ""
        errors.tell(
            f"time-out: nothing has happened for {self.limit_s:g} s while {self._doing}{more}; stacks: {path}; "
            "guards.hang_timeout_s sets the limit",
            other_rank=self._waiting,
        )
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

"""Graceful shutdown: a run that is asked to stop finishes its step, saves, and ends with exit code 75."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

#: Exit code of a run that was asked to stop and can be resumed; EX_TEMPFAIL of sysexits.h, "try again later".
PREEMPTED = 75
#: Exit code of what was ended at once by Ctrl-C, as shells give it.
INTERRUPTED = 130
#: What asks a run to stop: schedulers (SIGTERM, SIGUSR1), a terminal that closes (SIGHUP), Ctrl-C (SIGINT).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
#: Seconds after which another Ctrl-C is a second one.
AGAIN_S = 1.0
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class StopRequested(BaseException):
    """A signal asked to stop while there was nothing to save, or Ctrl-C came twice. Not an error: no `Exception`.

    `again` is set where it came twice: the run was to end at once, without saving.
    """

    def __init__(self, name: str, again: bool = False):
        super().__init__(name)
        self.again = again


class GracefulShutdown:
    """Within it, a signal is noted in `requested` instead of ending the process.

    While `interruptible` is set (before the first step, when there is nothing to save) it raises `StopRequested` at
    once; a second Ctrl-C does so always. Signals that were ignored at the start, as SIGHUP is under nohup, stay so.
    Outside of the main thread nothing is changed: a trainer embedded in a thread is stopped by its owner.
    """

    def __init__(self):
        self.requested = ""
        self.interruptible = True
        self._since = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
            _stop_with_launcher()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        # Slurm and the launcher may both deliver the same request; a person needs longer to ask again.
        again = bool(self.requested) and now - self._since > AGAIN_S
        if not self.requested:
            self.requested, self._since = name, now
        again = again and number == signal.SIGINT
        if self.interruptible or again:
            raise StopRequested(name, again and not self.interruptible)


def ignore_signals(_worker: int = 0) -> None:
    """For data workers: only the process that trains decides when to stop (Ctrl-C and Slurm reach every process)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop_with_launcher() -> None:
    """Let the kernel send SIGTERM to this rank when its launcher is gone, so that no rank goes on as an orphan."""
    launcher = os.environ.get("UNIMED_LAUNCHER_PID")
    if not launcher or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(launcher):
        raise StopRequested("SIGTERM")

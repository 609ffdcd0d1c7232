"""One writer per folder: a lock file that names its owner and is taken over when the owner is dead."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class FolderInUseError(RuntimeError):
    """Another process writes in a folder; the message names it and says what to do."""


@functools.cache
def this_machine() -> str:
    """Eight hex digits of the set of processes that this one can see: host, boot and process namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def is_running(pid: int, started: str = "") -> bool:
    """Is there such a process on this machine, and is it the one that started then?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    now = _start_of(pid)
    return now != "dead" and not (started and now and now != started)


def _start_of(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" where it cannot be told, "dead" for a zombie."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "dead" if fields[0] in "ZX" else fields[19]
    return ""


class FolderLock:
    """One writer per folder: hold it as a context (`with FolderLock(folder, "training"):`) while writing there.

    The lock is a small file that names the owner (process, host, purpose, since when) and is touched every
    `heartbeat_s` seconds by a thread. An owner of this machine that no longer runs is taken over at once; one of
    another machine after `dead_after_s` seconds without a heartbeat. Forked children do not release it.

    Args:
        folder: what is locked. The file is `folder/.lock`; the folder is made.
        purpose: what the owner does, for the message that others get.
        file: name of the lock file; locks of different names do not know of each other.
        beside: put the file beside the folder (`.NAME.lock`), for a folder that appears or is replaced as a whole.
        wait_s: wait so long for another owner before giving up.
        report: called with one line before waiting.

    Raises:
        FolderInUseError: on entering, another process holds it (after `wait_s`).
    """

    def __init__(
        self,
        folder: str | Path,
        purpose: str = "writing",
        *,
        file: str = ".lock",
        beside: bool = False,
        wait_s: float = 0,
        heartbeat_s: float = 10,
        dead_after_s: float = 120,
        report: Callable[[str], None] | None = None,
    ):
        self.folder, self.purpose, self.wait_s, self.report = Path(folder), purpose, wait_s, report
        self.heartbeat_s, self.dead_after_s = heartbeat_s, dead_after_s
        absolute = self.folder.absolute()
        self.path = absolute.parent / f".{absolute.name}.lock" if beside else absolute / file
        self._token = ""
        self._pid = 0
        self._stop = threading.Event()

    def __enter__(self) -> FolderLock:
        return self.acquire()

    def __exit__(self, *exception) -> None:
        self.release()

    def acquire(self) -> FolderLock:
        """Take the lock; see the class."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline, told = time.monotonic() + self.wait_s, False
        pause = 0.02
        while (owner := self._try()) is not None:
            if time.monotonic() >= deadline:
                raise FolderInUseError(f"{self.folder} is in use: {describe_owner(owner)}; wait for it or stop it")
            if self.report is not None and not told:
                self.report(f"waiting for {self.folder}: {describe_owner(owner)}")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        self._stop = threading.Event()
        threading.Thread(target=self._beat, args=(self._stop, self._token), daemon=True, name="folder-lock").start()
        return self

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held, or in a forked child."""
        self._stop.set()
        if not self._token or self._pid != os.getpid():
            return
        with contextlib.suppress(OSError), self._opened() as handle:
            if (_owner(handle) or {}).get("token") == self._token:
                self.path.unlink(missing_ok=True)
        self._token = ""

    def check(self) -> None:
        """Stop where the lock was lost.

        Raises:
            FolderInUseError: another process took it over, because this one was suspended for too long.
        """
        owner = lock_owner(self.path)
        if owner is None or owner.get("token") != self._token:
            holder = describe_owner(owner) if owner else "nobody holds it"
            raise FolderInUseError(f"{self.folder} was taken over while this process did not run: {holder}")

    def _try(self) -> dict | None:
        """None where the lock is ours now, else who has it."""
        with self._opened() as handle:
            owner = _owner(handle)
            if owner is not None and self._lives(owner, handle):
                return owner
            self._token, self._pid = secrets.token_hex(8), os.getpid()
            mine = {
                "process": self._pid,
                "started": _start_of(self._pid),
                "host": socket.gethostname(),
                "machine": this_machine(),
                "purpose": self.purpose,
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "token": self._token,
            }
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(mine).encode(), 0)
            os.fsync(handle)
            return None

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The lock file, for this process alone as long as it is looked at (held for milliseconds, never longer)."""
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock_handle(handle)
                # Whoever gave the lock back meanwhile removed the file that was opened here.
                try:
                    there = os.path.samestat(os.fstat(handle), os.stat(self.path))
                except FileNotFoundError:
                    there = False
                if there:
                    yield handle
                    return
            finally:
                os.close(handle)

    def _lives(self, owner: Mapping, handle: int) -> bool:
        if owner.get("machine") == this_machine():
            return is_running(int(owner["process"]), str(owner.get("started", "")))
        # The clock of the file system, not that of this machine: both times are its own.
        probe = self.path.parent / f".{self.path.name}-{secrets.token_hex(4)}"
        try:
            probe.touch()
            age = probe.stat().st_mtime - os.fstat(handle).st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return age < self.dead_after_s

    def _beat(self, stop: threading.Event, token: str) -> None:
        while not stop.wait(self.heartbeat_s):
            with contextlib.suppress(OSError):
                if (lock_owner(self.path) or {}).get("token") != token:
                    return
                os.utime(self.path)


#: Files that say "in use" for as long as this process lives -> the handle that holds them.
_uses: dict[str, int] = {}


def mark_in_use(path: str | Path) -> None:
    """Say, until this process and its forked children have ended, that what `path` stands for is in use.

    Any number of processes may say so at once, and the kernel takes it back however they end. Where the file system
    knows no locks nothing is said, and `unused` answers that it cannot tell.

    Args:
        path: a file for nothing but this; it is made, and its folder.
    """
    path = Path(path).absolute()
    handle = _uses.get(str(path))
    with contextlib.suppress(OSError):
        if handle is not None and os.path.samestat(os.fstat(handle), os.stat(path)):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    _uses[str(path)] = handle
                    return
            except FileNotFoundError:
                pass  # removed by `unused` meanwhile
            except OSError:
                os.close(handle)
                raise
            os.close(handle)


@contextmanager
def unused(path: str | Path) -> Iterator[bool]:
    """Whether nobody holds `path` by `mark_in_use`, and within the block nobody gets it; who asks meanwhile waits.

    False also where that cannot be told. The file is removed at the end where it was unused.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.path.samestat(os.fstat(handle), os.stat(path))
        except (ImportError, OSError):
            alone = False
        yield alone
        if alone:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def lock_owner(path: str | Path) -> dict | None:
    """Who wrote a lock file; None where there is none."""
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        return _owner(stream.fileno())
    return None


def living_owner(path: str | Path) -> dict | None:
    """Who holds a lock; None where nobody does, or where its owner is dead on this machine."""
    owner = lock_owner(path)
    if owner is not None and owner.get("machine") == this_machine():
        return owner if is_running(int(owner["process"]), str(owner.get("started", ""))) else None
    return owner


def describe_owner(owner: Mapping) -> str:
    """A line for people: what the owner of a lock does, its process and host, since when."""
    return (
        f"{owner.get('purpose', 'writing')} by process {owner.get('process', '?')} on {owner.get('host', '?')}"
        f" since {owner.get('since', '?')}"
    )


def _owner(handle: int) -> dict | None:
    try:
        found = json.loads(os.pread(handle, 1 << 16, 0))
        return found if isinstance(found, dict) and int(found["process"]) > 0 else None
    except (ValueError, KeyError, TypeError):
        return None  # just made, or torn by a crash


def _lock_handle(handle: int) -> None:
    with contextlib.suppress(ImportError, OSError):  # file systems and systems without it: the file alone must do
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)

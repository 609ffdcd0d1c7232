"""Files behind URLs (s3://, gs://, http(s)://, file://) as local files: fetched whole into a cache of bounded size.

A shard is read at many places, so it is fetched once and read like any other. What was fetched longest ago goes first
when room is needed. A fetch goes on where it was cut; errors that may pass are waited for, others are told at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from unimed.data.readers.tars import ShardError
from unimed.files import cache_folder, remove_left_overs, unfinished_file
from unimed.io.remote import (
    UnreachableError,
    address_key,
    file_system,
    information,
    is_url,
    redacted,
    retried,
    stamp_of,
    without_query,
)

PROTOCOLS = ("s3", "gs", "gcs", "http", "https", "file")
#: Variable with the most gigabytes that fetched files may take, of all processes of a machine.
SIZE_VARIABLE = "UNIMED_REMOTE_CACHE_GB"
DEFAULT_SIZE_GB = 50.0
#: Variable with the seconds without a byte after which a file is given up.
PATIENCE_VARIABLE = "UNIMED_REMOTE_PATIENCE_S"
DEFAULT_PATIENCE_S = 120.0
#: Bytes asked for at once.
PIECE = 8 << 20


def find(pattern: str) -> list[str]:
    """URLs that fit a URL with `*`, `?` or `[`, in order.

    Raises:
        ShardError: the place cannot be listed.
    """
    system, path = _system(pattern)
    try:
        return sorted(system.unstrip_protocol(found) for found in system.glob(path))
    except Exception as error:  # of the library behind the protocol
        why = f"{type(error).__name__} {redacted(str(error))}"
        raise ShardError(
            f"{without_query(pattern)}: cannot be listed ({why}); name the shards: {{000000..000099}}"
        ) from error


def stamp(path: str | Path) -> list[int]:
    """Two numbers that change when a file does: its size, and the time or the version that the server gives it.

    Raises:
        ShardError: there is no such file.
    """
    if not is_url(path):
        try:
            status = os.stat(path)
        except OSError as error:
            raise ShardError(f"{path}: no such shard") from error
        return [status.st_size, status.st_mtime_ns]
    url = str(path)
    with _as_of_a_shard(url):
        _system(url)
        found = information(url, _patience_s())
    if not isinstance(found.get("size"), int):
        raise ShardError(f"{without_query(url)}: the server does not say how long it is")
    return [found["size"], int(stamp_of(found)[:14], 16)]


@contextlib.contextmanager
def opened(path: str | Path, known: list[int]) -> Iterator[IO[bytes]]:
    """A file or what lies behind a URL, for reading at any place.

    Args:
        known: its stamp when it was looked at first.

    Raises:
        ShardError: it cannot be fetched, or it was changed.
    """
    if not is_url(path):
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            if [status.st_size, status.st_mtime_ns] != known:
                raise _changed(path)
            yield stream
        return
    with _fetched(str(path), known) as stream:
        yield stream


@contextlib.contextmanager
def local(path: str | Path, known: list[int]) -> Iterator[Path]:
    """A path under which a file, or what lies behind a URL, can be opened by other libraries."""
    if not is_url(path):
        yield Path(path)
        return
    with _fetched(str(path), known) as stream:
        yield Path(f"/proc/self/fd/{stream.fileno()}") if os.path.exists("/proc/self/fd") else Path(stream.name)


def _fetched(url: str, known: list[int]) -> IO[bytes]:
    folder = cache_folder("remote")
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_overs(folder)
    key = hashlib.sha256(f"{address_key(url)} {known}".encode()).hexdigest()[:32]
    kept = folder / f"{key}.part_of_cache"
    # Held while it is fetched and opened, so that processes of one machine fetch a file once.
    with _held(folder / f"{key}.lock"):
        with contextlib.suppress(FileNotFoundError):
            stream = open(kept, "rb")
            os.utime(kept)
            return stream
        size = known[0]
        with unfinished_file(folder) as place:
            _take_room(folder, place, size)
            _fetch(url, place, known)
            os.replace(place, kept)
        # Whoever makes room may remove it now; what is open stays readable.
        return open(kept, "rb")


def _fetch(url: str, place: Path, known: list[int]) -> None:
    size, got = known[0], 0
    system, path = _system(url)
    with open(place, "r+b") as out:
        while got < size:
            end = min(size, got + PIECE)

            def read(start=got, end=end) -> bytes:
                data = system.cat_file(path, start=start, end=end)
                if len(data) == size and (start, end) != (0, size):
                    data = data[start:end]  # a server that does not know ranges
                if not data or len(data) > end - start:
                    raise ConnectionError(f"{len(data)} bytes where {end - start} were asked for")
                return data

            with _as_of_a_shard(url):
                data = retried(read, without_query(url), _patience_s())
            out.write(data)
            got += len(data)
    if stamp(url) != known:
        raise _changed(url)


@contextlib.contextmanager
def _as_of_a_shard(url: str) -> Iterator[None]:
    """What `unimed.io.remote` raises, as errors of a shard."""
    try:
        yield
    except UnreachableError as error:
        raise ShardError(str(error)) from error
    except FileNotFoundError as error:
        raise ShardError(f"{without_query(url)}: no such shard") from error
    except (PermissionError, ValueError, TypeError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{without_query(url)}: cannot be read ({redacted(str(error))})") from error


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise ShardError(f"{without_query(url)}: {protocol}:// is not known; known are {', '.join(PROTOCOLS)}")
    return file_system(url)


def _take_room(folder: Path, place: Path, size: int) -> None:
    """Make `place` a file of `size` bytes without content, once that many are free; what is fetched elsewhere counts.

    Raises:
        ShardError: it would not fit into an empty cache.
    """
    limit = _number(SIZE_VARIABLE, DEFAULT_SIZE_GB) * 1e9
    if size > limit:
        raise ShardError(
            f"a file of {size / 1e9:.1g} GB does not fit into the cache of {limit / 1e9:g} GB ({folder}); "
            f"{SIZE_VARIABLE} sets its size"
        )
    end = time.monotonic() + _patience_s()
    while True:
        with _held(folder / "cache.lock"):
            # After so long the others are taken for dead.
            if _free(folder, limit - size) or time.monotonic() > end:
                os.truncate(place, size)
                return
        time.sleep(0.05)


def _free(folder: Path, most: float) -> bool:
    """Remove what was used longest ago until at most so many bytes are taken; whether that could be reached."""
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            entries.append((status.st_mtime_ns, status.st_size, path))
    taken = sum(entry[1] for entry in entries)
    for _, length, path in sorted(entry for entry in entries if entry[2].suffix == ".part_of_cache"):
        if taken <= most:
            break
        path.unlink(missing_ok=True)
        taken -= length
    return taken <= most


def _patience_s() -> float:
    return _number(PATIENCE_VARIABLE, DEFAULT_PATIENCE_S)


def _number(variable: str, default: float) -> float:
    """The number above 0 in a variable of the environment.

    Raises:
        ShardError: it holds something else.
    """
    word = os.environ.get(variable) or str(default)
    with contextlib.suppress(ValueError):
        if 0 < float(word) < math.inf:
            return float(word)
    raise ShardError(f"{variable}={word!r} is no number above 0")


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """One process at a time; the kernel takes it back from one that dies. The file stays, it is empty."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _changed(path: str | Path) -> ShardError:
    return ShardError(f"{path}: the shard was changed since the run began; start anew to index it again")

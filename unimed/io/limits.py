"""What may be taken into memory, and streams that are read to their end and their checksum.

A header may claim anything and 50 bytes of gzip may hold gigabytes, so every reader asks here before it takes memory.
Three environment variables move the limits (plain numbers, or with k, M, G, T for powers of 1024):
`UNIMED_MAX_FILE_BYTES` (a file as it lies on the disk), `UNIMED_MAX_BYTES` (what it holds once decompressed and
decoded) and `UNIMED_MAX_VOXELS`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

CHUNK = 2**20


class ReadError(ValueError):
    """A file that cannot be read as an image; the message names the file and what to do."""


@dataclass(frozen=True)
class Limits:
    """Most bytes on the disk, most bytes once decompressed and decoded, most voxels."""

    file_bytes: int = 8 * 2**30
    decoded_bytes: int = 4 * 2**30
    voxels: int = 2**31


_VARIABLES = {
    "UNIMED_MAX_FILE_BYTES": "file_bytes",
    "UNIMED_MAX_BYTES": "decoded_bytes",
    "UNIMED_MAX_VOXELS": "voxels",
}
_given: ContextVar[Limits | None] = ContextVar("limits", default=None)


def limits() -> Limits:
    """The limits that hold now: those of `limited`, else the environment's, else the defaults.

    Raises:
        ReadError: an environment variable that is no size.
    """
    if (given := _given.get()) is not None:
        return given
    found = {}
    for variable, name in _VARIABLES.items():
        if text := os.environ.get(variable, "").strip():
            try:
                found[name] = size_of(text)
            except ValueError as error:
                raise ReadError(f"{variable}={error}") from None
    return replace(Limits(), **found)


def size_of(text: str) -> int:
    """Bytes of a size in words: "500000000", "500M", "8G"; k, M, G, T are powers of 1024.

    Raises:
        ValueError: no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)i?[bB]?", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no size; write a number such as 500000000, 500M or 8G")
    return int(float(match[1]) * 1024 ** " kMGT".index(match[2].replace("K", "k") or " "))


@contextmanager
def limited(given: Limits | None):
    """Within the `with` block, `given` holds instead of the environment; None changes nothing."""
    token = _given.set(given if given is not None else _given.get())
    try:
        yield
    finally:
        _given.reset(token)


def refuse_too_large(where, shape: Iterable[int], bytes_each: float = 1) -> None:
    """Stop before memory is taken for an array that is empty or over the limits.

    Args:
        where: path or name, for the message. shape: as the header claims. bytes_each: bytes per voxel.

    Raises:
        ReadError: see above.
    """
    shape = tuple(int(extent) for extent in shape)
    voxels = 1
    for extent in shape:
        voxels *= extent
    if not shape or min(shape) < 1:
        raise ReadError(f"{where}: the header gives the shape {shape}, which holds no voxel")
    most = limits()
    if voxels > most.voxels:
        raise ReadError(
            f"{where}: the header claims {voxels} voxels {shape}, more than the limit {most.voxels} "
            "(UNIMED_MAX_VOXELS moves it)"
        )
    if voxels * bytes_each > most.decoded_bytes:
        raise ReadError(
            f"{where}: {shape} would take {int(voxels * bytes_each)} bytes, more than the limit {most.decoded_bytes} "
            "(UNIMED_MAX_BYTES moves it)"
        )


def refuse_large_file(path: Path) -> None:
    """Stop before a file is read that is larger than the limit on files."""
    size, most = path.stat().st_size, limits().file_bytes
    if size > most:
        raise ReadError(f"{path}: {size} bytes, more than the limit {most} (UNIMED_MAX_FILE_BYTES moves it)")


def refuse_placeholder(where, start: bytes) -> None:
    """Name what people get instead of a file: a Git LFS pointer, a page that says why there is no download.

    Args:
        start: the first bytes, some hundred.
    """
    begin = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if begin.startswith(b"version https://git-lfs"):
        raise ReadError(f"{where}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    lower = begin.lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head")):
        raise ReadError(f"{where}: an HTML page, not an image; the download led to a page, fetch the file again")
    if lower.startswith(b"<?xml") and b"<error>" in lower:
        raise ReadError(f"{where}: a server's error message, not an image; fetch the file again")


def _gzip(stream) -> Iterable[bytes]:
    begin = stream.read(1)
    if not begin:
        raise EOFError("there are no data")
    stream.seek(-1, io.SEEK_CUR)
    with gzip.GzipFile(fileobj=stream) as member:  # reads every member, its CRC and its length; allows zero padding
        while chunk := member.read(CHUNK):
            yield chunk


def _bzip2(stream) -> Iterable[bytes]:
    # Not BZ2File, which takes whatever follows the first part for its end.
    data, machine = stream.read(CHUNK), bz2.BZ2Decompressor()
    if not data:
        raise EOFError("there are no data")
    while True:
        if chunk := machine.decompress(data, CHUNK):
            yield chunk
        data = b""
        if machine.eof:
            rest = machine.unused_data + stream.read()
            if not rest.strip(b"\0"):
                return
            data, machine = rest, bz2.BZ2Decompressor()
        elif machine.needs_input and not (data := stream.read(CHUNK)):
            raise EOFError("the compressed data end too early")


def _inflate(stream, window_bits: int) -> Iterable[bytes]:
    machine = zlib.decompressobj(window_bits)
    while not machine.eof:
        data = machine.unconsumed_tail or stream.read(CHUNK)
        if not data:
            raise EOFError("the compressed data end too early")
        chunk = machine.decompress(data, CHUNK)
        if chunk:
            yield chunk
    if (machine.unused_data + stream.read()).strip(b"\0"):
        raise ValueError("there are bytes behind the end of the compressed data")


_DECODERS = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "zlib": lambda stream: _inflate(stream, zlib.MAX_WBITS),
    "deflate": lambda stream: _inflate(stream, -zlib.MAX_WBITS),
}


def decompress(stream, kind: str, where, most: int | None = None) -> bytearray:
    """All that a compressed stream holds, read to its end and its checksum.

    Bytes behind the end are an error unless they are zeros, with which some writers fill blocks.

    Args:
        stream: binary file at the beginning of the compressed data. kind: "gzip", "bzip2", "zlib" or "deflate"
            (which alone carries no checksum). where: for messages. most: stop beyond so many bytes, those that the
            header speaks of; the limit on decoded bytes holds in any case. No more than that is held in memory.

    Raises:
        ReadError: cut, damaged, followed by other bytes, or larger than the limit.
    """
    limit, data = limits().decoded_bytes, bytearray()
    allowed = limit if most is None else min(most, limit)
    try:
        for chunk in _DECODERS[kind](stream):
            if len(data) + len(chunk) > allowed:
                raise ReadError(
                    f"{where}: holds more than {allowed} bytes once decompressed, "
                    + ("more than its header promises" if allowed == most else "the limit (UNIMED_MAX_BYTES moves it)")
                )
            data += chunk
    except ReadError:
        raise
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ReadError(
            f"{where}: the {kind} data are cut or damaged ({' '.join(str(error).split())}); fetch the file again"
        ) from error
    return data


def exactly(data: bytes | bytearray | memoryview, expected: int, where):
    """`data` if it holds as many bytes as the header promises.

    Raises:
        ReadError: more or fewer.
    """
    if len(data) < expected:
        raise ReadError(f"{where}: the file is short: {len(data)} bytes of data, its header promises {expected}")
    if len(data) > expected:
        raise ReadError(f"{where}: {len(data) - expected} bytes more than its header promises; header or file is wrong")
    return data


def begin_of(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file (fewer where it ends), gunzipped where it is gzip; nothing further is read.

    Raises:
        ReadError: too large a file, no file but what stands for one, or a gzip stream that is damaged so early.
    """
    refuse_large_file(path)
    start = head_of(path)
    refuse_placeholder(path, start)
    if start[:2] != b"\x1f\x8b":
        return head_of(path, count)
    try:
        with gzip.open(path) as stream:
            return stream.read(count)
    except (EOFError, OSError, zlib.error) as error:
        raise ReadError(
            f"{path}: the gzip data are cut or damaged ({' '.join(str(error).split())}); fetch the file again"
        ) from error


def read_whole(path: Path, most: int | None = None) -> bytearray:
    """All bytes of a file, gunzipped where it is gzip, within the limits.

    Args:
        most: bytes that its header speaks of, see `decompress`; of a file that is not compressed so many and one
            more are read.
    """
    refuse_large_file(path)
    with open(path, "rb") as stream:
        start = stream.read(512)
        refuse_placeholder(path, start)
        stream.seek(0)
        if start[:2] == b"\x1f\x8b":
            return decompress(stream, "gzip", path, most)
        return bytearray(stream.read() if most is None else stream.read(most + 1))


def head_of(path: Path | io.BytesIO, count: int = 512) -> bytes:
    """The first bytes of a file or stream, which is left at its beginning."""
    if isinstance(path, io.BytesIO):
        path.seek(0)
        start = path.read(count)
        path.seek(0)
        return start
    with open(path, "rb") as stream:
        return stream.read(count)

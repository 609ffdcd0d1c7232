"""The members of tar shards: where each lies, and which sample it belongs to by the rule of WebDataset."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from unimed.io.remote import redacted


class ShardError(ValueError):
    """A shard or sample that cannot be used; the message names shard, sample and reason, and no keys of URLs."""

    def __init__(self, message: str = ""):
        super().__init__(redacted(message))


class Member(NamedTuple):
    """A file of a tar: its name, and where its content lies in bytes."""

    name: str
    offset: int
    size: int


def tar_members(path: str | Path, opened: Callable = open) -> tuple[list[Member], str]:
    """The files of an uncompressed tar in their order, and what is wrong with its end ("" where nothing is).

    Hidden files (as macOS adds them) are left out.

    Args:
        opened: `opened(path, "rb")` gives the stream, for tars that lie elsewhere.

    Raises:
        FileNotFoundError: no such file.
        ShardError: not an uncompressed tar file, or it cannot be read.
    """
    members: list[Member] = []
    problem, end = "", 0
    try:
        with opened(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            try:
                for member in archive:
                    end = member.offset_data + -(-member.size // 512) * 512
                    if member.isreg() and not member.issparse() and not Path(member.name).name.startswith("."):
                        members.append(Member(member.name, member.offset_data, member.size))
            except tarfile.ReadError as error:
                problem = f"the file ends early or is damaged ({error})"
    except FileNotFoundError:
        raise
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"{path}: not an uncompressed tar file, or it cannot be read ({error})") from error
    return members, problem or _end_of(path, end, opened)


def _end_of(path: str | Path, end: int, opened: Callable) -> str:
    """What is wrong after the last whole member: a tar file ends in blocks of zeros."""
    with opened(path, "rb") as stream:
        stream.seek(end)
        block = stream.read(512)
    return "" if len(block) == 512 and not block.strip(b"\0") else "the file ends early"


def split_key(name: str) -> tuple[str, str]:
    """(key, rest) of a member by the rule of WebDataset: the rest follows the first dot of the file's name.

    Folders belong to the key: "a/b.seg.png" is ("a/b", "seg.png"). Rests are compared without regard to case.
    """
    folder, _, file = name.rpartition("/")
    key, _, rest = file.partition(".")
    folder = folder.removeprefix("./").rstrip("/")
    return (f"{folder}/{key}" if folder not in ("", ".") else key), rest.lower()


def by_key(path: str | Path, members: Iterable[Member]) -> dict[str, dict[str, Member]]:
    """{key: {rest: member}} in the order of the shard.

    Raises:
        ShardError: two members of one key and rest; both are named.
    """
    keys: dict[str, dict[str, Member]] = {}
    for member in members:
        key, rest = split_key(member.name)
        other = keys.setdefault(key, {}).setdefault(rest, member)
        if other is not member:
            raise twice(path, key, other, member)
    return keys


def twice(path: str | Path, key: str, one: Member, other: Member) -> ShardError:
    """The error of two members that stand for the same part of a sample."""
    return ShardError(
        f"{path}: key {key} stands twice, as {one.name} (byte {one.offset}) and {other.name} (byte {other.offset}); "
        "which of them belong together cannot be told, write the shard again with keys of their own"
    )

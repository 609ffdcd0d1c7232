"""The file behind a record, on this disk for as long as it is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimed.files import scratch_folder
from unimed.identity import quick_stamp
from unimed.inference.cohort.records import CohortRecord
from unimed.io.errors import ReadError
from unimed.io.remote import fetch, is_url, read_range, stamp
from unimed.names import safe_name


@contextmanager
def local_copy(record: CohortRecord, scratch: Path, patience_s: float) -> Iterator[Path]:
    """The path of a source; what lies in a shard or behind a URL is copied to a folder below `scratch` and removed.

    Raises:
        ReadError: it was replaced since the cohort was planned, or it ends early.
        UnreachableError: the network failed for longer than `patience_s`.
        FileNotFoundError, PermissionError, ...: it cannot be read.
    """
    if not record.member and not is_url(record.place):
        yield Path(record.place)
        return
    with scratch_folder(scratch) as folder:
        try:
            yield _copy(record, folder, patience_s)
        except Exception as error:  # noqa: BLE001 - the folder is no one's business, the source is
            if str(folder) in str(error) and isinstance(error, ValueError):
                raise ReadError(str(error).replace(f"{folder}/", "")) from error
            raise


def _copy(record: CohortRecord, folder: Path, patience_s: float) -> Path:
    remote = is_url(record.place)
    if remote and record.stamp and not record.place.endswith("/"):
        now = stamp(record.place, patience_s)
    else:
        now = record.stamp if remote else quick_stamp(record.place)
    if now != record.stamp and record.stamp:
        raise ReadError(f"{record.source}: it was replaced since the cohort was planned; run the command again")
    if not record.member:
        name = record.place.rstrip("/").rpartition("/")[2].partition("?")[0]
        return fetch(record.place, folder / safe_name(name), patience_s)
    if remote:
        data = read_range(record.place, record.offset, record.size, patience_s)
    else:
        with open(record.place, "rb") as stream:
            stream.seek(record.offset)
            data = stream.read(record.size)
        if len(data) < record.size:
            raise ReadError(f"{record.source}: the shard ends early")
    path = folder / safe_name(record.member.rpartition("/")[2])
    path.write_bytes(data)
    return path

"""Files behind URLs, through fsspec: s3://, gs://, http(s)://, memory:// and whatever else has a file system there.

What is not there, or must not be read, is an error at once. Anything else may be the network: it is tried again for a
while, and then `UnreachableError` says so, so that a run stops instead of naming every further file as broken.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from unimed.files import is_of_the_disk

Result = TypeVar("Result")

#: Seconds for which a failing connection is tried again; an outage of 20 s is no reason to stop.
PATIENCE_S = 60.0
#: Seconds without a byte after which a connection counts as failed.
SILENCE_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, KeyError,
          ImportError, NotImplementedError)  # fmt: skip
#: What tells whether a remote file was replaced: digests of its content, and times where there is none of them.
_DIGESTS, _TIMES = ("ETag", "etag", "md5Hash", "checksum"), ("mtime", "LastModified", "last_modified", "created")

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
#: Parameters by which stores and servers know who asks and for how long they answer (S3, GCS, Azure, CloudFront, ...).
_CREDENTIAL = re.compile(
    r"x-(?:amz|goog|oss|cos|obs)-[\w\-]+|(?:aws)?accesskeyid|googleaccessid|key-pair-id|policy|expires|se|st|sp|sv|sr|spr"
    r"|ske|skt|sks|skv|skoid|sktid|sig|signature|[\w\-]*(?:token|secret|password|passwd|credential|api[_\-]?key)[\w\-]*",
    re.IGNORECASE,
)
_KEY_OF_A_QUERY = re.compile(rf"([?&](?:{_CREDENTIAL.pattern})=)[^&\s'\"<>]+", re.IGNORECASE)


class UnreachableError(OSError):
    """A place that did not answer for as long as was waited."""


def is_url(text: str | Path) -> bool:
    """Whether a text names a place by its protocol."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.\-]*://", str(text)) is not None


def without_query(url: str) -> str:
    """A URL as it may be shown: what follows "?" may be a key, and so may a user before "@"."""
    return _without_user(str(url).partition("?")[0].partition("#")[0])


def _without_user(url: str) -> str:
    return re.sub(r"//[^/?#]*@", "//", url, count=1)


def redacted(text: str) -> str:
    """A text as it may be kept: addresses in it without users, passwords, keys and signatures.

    Of a web address everything from "?" on is left out; elsewhere "?" may be a pattern, and only keys are.
    """

    def shown(match: re.Match) -> str:
        url = match.group()
        if url.lower().startswith(("http://", "https://")):
            return without_query(url) + ("?***" if "?" in url else "")
        return _without_user(url)

    return _KEY_OF_A_QUERY.sub(r"\1***", _ADDRESS.sub(shown, str(text)))


def address_key(url: str) -> str:
    """Digest of a URL that is the same when it is signed again: users, passwords, keys and signatures do not count."""
    place, mark, query = _without_user(str(url)).partition("?")
    kept = [part for part in query.split("&") if not _CREDENTIAL.fullmatch(part.partition("=")[0])]
    place += mark + "&".join(kept) if any(kept) else ""
    return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path there.

    Raises:
        ValueError: a chain of file systems ("::"), a local one, or a protocol that fsspec does not know.
        ImportError: its library is not installed.
    """
    import fsspec

    if "::" in url:
        raise ValueError(f"{without_query(url)}: chains of file systems (::) are not followed")
    protocol, mark, rest = url.partition("://")
    protocol = protocol.lower()
    url = protocol + mark + rest
    if protocol in ("file", "local"):
        raise ValueError(f"{without_query(url)}: a file of this machine; give its path")
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
            }
        fs = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise ImportError(f"{protocol}:// needs `pip install unimed[remote]` ({error})") from None
    except TypeError:  # ftp, sftp, smb: their file systems ask for a host
        raise ValueError(f"{protocol}:// is not read here; use http(s)://, s3:// or gs://") from None
    return fs, fs._strip_protocol(url)


def retried(work: Callable[[], Result], where: str, patience_s: float = PATIENCE_S) -> Result:
    """The result of `work`, which is tried again while the network fails.

    Args:
        where: what is read, for messages.
        patience_s: seconds from the first failure.

    Raises:
        UnreachableError: it failed all the time.
        FileNotFoundError, PermissionError, ValueError, ...: what no further try mends.
    """
    since, pause = None, _FIRST_PAUSE_S
    while True:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            status = getattr(error, "status", None)
            final = isinstance(error, _FINAL) and not _hides_the_network(error)
            if is_of_the_disk(error) or (final and redacted(str(error)) == str(error)):
                raise
            if final:  # fsspec names the whole address
                kind = next(one for one in _FINAL if isinstance(error, one))
                raise kind(redacted(str(error))) from None
            text = f"{type(error).__name__}: {redacted(str(error))}"
            if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
                raise PermissionError(f"{where}: the server refuses it ({status})") from None
            if "Credentials" in type(error).__name__:  # of botocore and of Google: none are there, or half of them
                raise PermissionError(f"{where}: no credentials for it were found ({text})") from None
            now = time.monotonic()
            since = now if since is None else since
            if now + pause - since > patience_s:
                raise UnreachableError(f"{where}: not reached within {patience_s:g} s ({text})") from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _hides_the_network(error: Exception) -> bool:
    """fsspec says of a web server that does not answer that the file is not there; the cause tells them apart."""
    cause = error.__cause__
    return isinstance(error, FileNotFoundError) and cause is not None and getattr(cause, "status", None) is None


def read_range(url: str, start: int, size: int, patience_s: float = PATIENCE_S) -> bytes:
    """`size` bytes of a remote file from `start`; servers that send the whole file are understood.

    Raises:
        as `retried`.
    """
    fs, path = file_system(url)
    where = without_query(url)

    def work() -> bytes:
        data = fs.cat_file(path, start=start, end=start + size)
        if len(data) > size:
            data = data[start : start + size]
        if len(data) < size:
            raise OSError(f"{len(data)} of {size} bytes came")
        return data

    return retried(work, where, patience_s)


def fetch(url: str, destination: Path, patience_s: float = PATIENCE_S) -> Path:
    """Copy a remote file, or all files below a remote folder (where `url` ends in "/"), to `destination`.

    Raises:
        as `retried`.
    """
    fs, path = file_system(url)
    if not url.endswith("/"):
        _fetch_file(fs, path, without_query(url), destination, patience_s)
        return destination
    for found in sorted(retried(lambda: fs.find(path), without_query(url), patience_s)):
        place = destination / Path(found).relative_to(path)
        if ".." in place.parts:
            raise ValueError(f"{without_query(url)}: {found} leads out of its folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        _fetch_file(fs, found, f"{without_query(url)}{place.name}", place, patience_s)
    return destination


def _fetch_file(fs, path: str, where: str, destination: Path, patience_s: float) -> None:
    def work() -> None:
        size = fs.info(path).get("size")
        fs.get_file(path, str(destination))
        if size is not None and destination.stat().st_size != size:
            raise OSError(f"{destination.stat().st_size} of {size} bytes came")

    retried(work, where, patience_s)


def stamp_of(information: Mapping) -> str:
    """What a file system tells of a file that changes when the file is replaced, as a digest; listings and questions
    about one file give the same."""
    known = [str(information.get("size"))]
    for keys in (_DIGESTS, _TIMES):
        found = next((information[key] for key in keys if information.get(key) is not None), None)
        if found is not None:
            known.append(str(found.timestamp() if hasattr(found, "timestamp") else found))
            break
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def information(url: str, patience_s: float = PATIENCE_S) -> Mapping:
    """What its file system tells of a remote file as it is now.

    Raises:
        as `retried`.
    """
    fs, path = file_system(url)

    def work() -> Mapping:
        fs.invalidate_cache()
        return fs.info(path)

    return retried(work, without_query(url), patience_s)


def stamp(url: str, patience_s: float = PATIENCE_S) -> str:
    """`stamp_of` of a remote file as it is now.

    Raises:
        as `retried`.
    """
    return stamp_of(information(url, patience_s))

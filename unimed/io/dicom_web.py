"""Another DICOMweb server: studies fetched from it, and segmentations and reports stored there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from unimed import progress
from unimed.files import write_atomic
from unimed.io.dicom import open_dicom
from unimed.io.limits import ReadError, limits

#: Bearer token for the server, so that it stands in no command line.
TOKEN_VARIABLE = "UNIMED_DICOMWEB_TOKEN"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def connect(url: str):
    """A `dicomweb_client.DICOMwebClient`.

    Raises:
        ReadError: no http or https address. ImportError: dicomweb-client is not there.
    """
    try:
        from dicomweb_client.api import DICOMwebClient
    except ImportError as error:
        raise ImportError("DICOMweb needs dicomweb-client: pip install 'unimed[dicom]'") from error
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ReadError(
            f"{url}: a DICOMweb server is an http or https address, such as http://localhost:8042/dicom-web"
        )
    token = os.environ.get(TOKEN_VARIABLE, "")
    client = DICOMwebClient(
        url.rstrip("/"), headers={"Authorization": f"Bearer {token}"} if token else None, timeout=60
    )
    client.set_http_retry_params(retry=True, max_attempts=2, wait_exponential_multiplier=200)
    return client


def fetch(url: str, study: str, series: str | None, folder: str | Path) -> list[Path]:
    """The image series of a study (or one series) as folders below `folder`, a file per instance.

    What is there already is not fetched again; segmentations, reports and the like are left aside.

    Returns:
        the folders, one per series, in order.

    Raises:
        ReadError: nothing there, the server answers with an error, or more bytes than the limits allow.
    """
    from unimed.io.dicom_series import NO_IMAGES

    for uid in (study, *([series] if series else [])):
        _checked(uid)
    client = connect(url)
    try:
        rows = client.search_for_series(study, search_filters={"SeriesInstanceUID": series} if series else None)
        wanted = [
            _first(row, "0020000E") for row in rows
            if _first(row, "00080060") not in NO_IMAGES and (not series or _first(row, "0020000E") == series)
        ]  # fmt: skip
        if not wanted:
            raise ReadError(f"{url}: no image series of study {study}" + (f" called {series}" if series else ""))
        made, left = [], limits().decoded_bytes
        for uid in sorted(map(_checked, wanted)):
            place = Path(folder) / uid
            with progress.Progress("instance") as done:
                for number, dataset in enumerate(client.iter_series(study, uid)):
                    done.at(number)
                    path = place / f"{_checked(str(dataset.SOPInstanceUID))}.dcm"
                    left -= len(dataset.get("PixelData", b""))
                    if left < 0:
                        raise ReadError(
                            f"{url}: series {uid} is larger than the limit of {limits().decoded_bytes} bytes"
                        )
                    if not path.is_file():
                        place.mkdir(parents=True, exist_ok=True)
                        write_atomic(
                            path, lambda temporary, one=dataset: one.save_as(temporary, enforce_file_format=True)
                        )
            made.append(place)
    except (ReadError, ImportError):
        raise
    except Exception as error:  # requests and the client raise many kinds
        raise ReadError(f"{url}: {_message(error)}") from error
    return made


def store(url: str, paths: Iterable[str | Path]) -> int:
    """Store DICOM files; returns how many.

    Raises:
        ReadError: the server took not all of them, or answers with an error.
    """
    datasets = [open_dicom(Path(path)) for path in paths]
    if not datasets:
        return 0
    try:
        answer = connect(url).store_instances(datasets)
    except Exception as error:
        raise ReadError(f"{url}: {_message(error)}") from error
    refused = answer.get("FailedSOPSequence") or ()
    if len(refused):
        reason = int(refused[0].get("FailureReason", 0))
        raise ReadError(f"{url}: {len(refused)} of {len(datasets)} objects were not stored (reason {reason:04X})")
    return len(datasets)


def _checked(uid: str) -> str:
    if not _UID.fullmatch(uid) or len(uid) > 64:
        raise ReadError(f"{uid[:80]!r} is no DICOM UID")
    return uid


def _first(row: dict, tag: str) -> str:
    return str((row.get(tag, {}).get("Value") or [""])[0])


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

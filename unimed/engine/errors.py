"""Error reports of failed runs: one line and an exit code, from one rank; the traceback goes into a file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from unimed.io.remote import redacted
from unimed.outputs import explained

#: Words of an error that only says that another rank is gone (gloo, NCCL, the key-value store).
_OTHER_RANK = ("closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "tcpstore", "socket timeout")
#: Errors whose message alone tells what to do; others are named by their type, and by where the traceback is.
_PLAIN = (OSError, ValueError, ImportError, NotImplementedError)
_OWN = ("unimed.", "safetensors")


class TrainingError(RuntimeError):
    """Training cannot go on: too many steps without a finite loss, or too many broken samples."""


@contextlib.contextmanager
def traceback_kept_in(folder: Path, rank: int) -> Iterator[None]:
    """Write the traceback of an error that leaves this block to `folder`/error.txt (error_rank<N>.txt) and go on."""
    path = folder / ("error.txt" if rank == 0 else f"error_rank{rank}.txt")
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):
            path.write_text(redacted(traceback.format_exc()), encoding="utf-8")
            error.traceback_file = path
        raise


def one_line(error: BaseException) -> str:
    """The message of an error as one line that names what is wrong, without keys of addresses."""
    if words := explained(error):
        return redacted(words)
    text = redacted("; ".join(part.strip() for part in str(error).splitlines() if part.strip()))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {text[:200]}; lower batch_size (and raise accumulate), or use gradient_checkpointing"
    if _is_plain(error):
        return text or type(error).__name__
    where = getattr(error, "traceback_file", None)
    return f"{type(error).__name__}: {text}" + (f" (traceback: {where})" if where else "")


def _is_plain(error: BaseException) -> bool:
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return memory or isinstance(error, _PLAIN) or type(error).__module__.startswith(_OWN)


def report(error: BaseException) -> int:
    """Tell the user; returns the exit code 1.

    Under our launcher the line is left in a file, and the launcher prints each different one once. Alone, and under
    torchrun, it is printed here. UNIMED_DEBUG=1 prints the traceback as well; so
    does a mistake of this package whose traceback could be written nowhere.
    """
    lowered = f"{type(error).__name__} {error}".lower()
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    other_rank = several and isinstance(error, RuntimeError) and any(words in lowered for words in _OTHER_RANK)
    kept = _is_plain(error) or other_rank or hasattr(error, "traceback_file")
    if os.environ.get("UNIMED_DEBUG") or not kept:
        traceback.print_exception(error)
    tell(one_line(error), other_rank)
    return 1


def tell(message: str, other_rank: bool = False) -> None:
    """Print `error: message`, or hand it to the launcher; `other_rank`: it only says that another rank is gone."""
    path = os.environ.get("UNIMED_ERROR_FILE")
    if path:
        Path(path).write_text(json.dumps({"message": message, "other_rank": other_rank, "time": time.time()}))
    else:
        rank = os.environ.get("RANK", "0")
        print(f"error: {message}" if rank == "0" else f"error: rank {rank}: {message}", file=sys.stderr, flush=True)

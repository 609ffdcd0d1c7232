"""What the doors of a server share: models, queue, uploads, caches, owners. A door is a function of a `Core`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from unimed.inference.asking import Source
from unimed.inference.asking import open_source as open_path
from unimed.io.limits import limited
from unimed.serve.metrics import Metrics
from unimed.serve.pool import ModelPool
from unimed.serve.problems import Problem
from unimed.serve.settings import Settings
from unimed.serve.store import Cache, ImageStore, Stored
from unimed.serve.work import Lane, Question, Ticket

LOG = logging.getLogger("unimed.serve")
_TRIM_S = 30.0


class Core:
    """Shared by all doors; `app.state.core`.

    `jobs` is a `unimed.serve.jobs.Jobs`; it is set by `create_app`.
    """

    def __init__(self, pool: ModelPool, settings: Settings):
        self.pool, self.settings, self.metrics = pool, settings, Metrics()
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.state.chmod(0o700)
        self.images = ImageStore(settings.state / "images", settings.max_owner_bytes)
        self.sources, self.answers, self.embeddings = (
            Cache(settings.cache_bytes, lambda result, name=name: self.metrics.cache.labels(name, result).inc())
            for name in ("images", "answers", "embeddings")
        )
        self.lanes = {name: self._lane(name) for name in pool.names}
        self.began, self.closing = time.time(), False
        self.jobs: Any = None
        self._trimmed = time.monotonic()
        self._opening = threading.BoundedSemaphore(4)
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    def _lane(self, name: str) -> Lane:
        return Lane(name, self.pool, self.settings, self.metrics, self.answers, self.embeddings)

    # -- life ---------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to look after workers, uploads and idle models."""
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def close(self, wait_s: float = 30) -> None:
        """Refuse new questions, answer those at work, keep unfinished jobs for the next server."""
        self.closing = True
        self._stop.set()
        if self.jobs is not None:
            self.jobs.close()
        for lane in self.lanes.values():
            lane.close(wait_s)

    def _keep(self) -> None:
        while not self._stop.wait(0.5):
            try:
                self.look_after()
            except Exception:  # noqa: BLE001 - the keeper must not die of one bad file
                LOG.exception("keeper")

    def look_after(self) -> None:
        """One round: restart workers that died, delete idle uploads, unload idle models."""
        for lane in self.lanes.values():
            lane.watch()
        self.images.reap(self.settings.idle_image_s)
        if self.settings.idle_model_s:
            for name in self.pool.reap(self.settings.idle_model_s):
                LOG.info("unloaded", extra={"values": {"model": name}})
        if self.jobs is not None:
            self.jobs.reap(self.settings.idle_job_s)
            for state, count in self.jobs.counts().items():
                self.metrics.jobs.labels(state).set(count)
        if time.monotonic() - self._trimmed > _TRIM_S:
            self._trimmed = time.monotonic()
            give_memory_back()
        count, size = self.images.totals()
        self.metrics.images.set(count)
        self.metrics.image_bytes.set(size)

    # -- images -------------------------------------------------------------------------------------------------
    def open(self, stored: Stored, model: str | None = None, **how) -> Source:
        """What an upload holds, read within the limits; kept for its owner's next question.

        Args:
            model: name; it is loaded, and its CT windows are used.
            how: site, modality, window, page, series, phase, irregular.

        Raises:
            Problem: 400, it cannot be read; 413, larger than the limits.
        """
        how = {name: value for name, value in how.items() if value not in (None, "")}
        # Loaded here at the latest: read without the windows of its model, an image would get another answer.
        loaded = None if model is None else self.pool.get(model)
        windows = getattr(getattr(loaded, "config", None), "ct_windows", None)
        chosen = json.dumps(how, sort_keys=True, default=str)
        key = (stored.owner, stored.digest, chosen, repr(windows))
        found = self.sources.get(key)
        if found is not None:
            return found
        choices = {name: how.pop(name) for name in ("series", "phase", "irregular") if name in how}
        more = {} if windows is None else {"windows": windows}
        with self._opening, limited(self.settings.limits):
            try:
                found = open_path(stored.path, choices=choices, page=how.pop("page", None), **how, **more)
            except (ValueError, OSError) as error:
                message = plain_problem(error, stored)
                raise Problem(
                    413 if "limit" in message else 400, message, param="image", code="unreadable_image"
                ) from error
        array = found.content.array if found.is_volume else found.content.rgb
        self.sources.put(key, found, array.nbytes)
        return found

    def forget(self, stored: Stored) -> None:
        """Drop what was cached of an upload."""
        self.sources.forget(lambda key: key[:2] == (stored.owner, stored.digest))
        self.answers.forget(lambda key: key[0] == stored.owner and stored.digest in key[2])
        self.embeddings.forget(lambda key: True)  # they do not say which upload they are of

    # -- questions ----------------------------------------------------------------------------------------------
    def submit(
        self, model: str, question: Question, on_text: Callable[[str], None] | None = None,
        on_progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Ticket:  # fmt: skip
        """Put a question into the queue of a model; `ticket.future` gives an `Answer`.

        Args:
            on_text, on_progress: called on the worker's thread with the text so far; with (what, done, total).

        Raises:
            Problem: 429, the queue is full; 503, the server is closing.
        """
        now = time.monotonic()
        ticket = Ticket(
            question, None, on_text, on_progress, now + self.settings.request_timeout_s,
            now + self.settings.queue_timeout_s,
        )  # fmt: skip
        key = question.key(model)
        found = None if key is None else self.answers.get(key)
        if found is not None:
            ticket.settle(replace(found, cached=True))
            return ticket
        self.lanes[model].add(ticket)
        return ticket

    def add_model(self, name: str, loader: Callable[[], Any]) -> None:
        """Add a model of one owner (see `ModelPool.add`): whoever knows its name may ask it, and no list shows it."""
        self.pool.add(name, loader)
        self.answers.forget(lambda key: key[1] == name)
        self.embeddings.forget(lambda key: key[0] == name)
        if name not in self.lanes:
            self.lanes = {**self.lanes, name: self._lane(name)}
            if self.jobs is not None:
                self.jobs.work_for(name)

    def call(self, model: str, work: Callable[[Any], Any], on_progress=None) -> Ticket:
        """Let `work(model)` run on the worker of a model when no question waits; for jobs and training."""
        ticket = Ticket(None, work, None, on_progress)
        self.lanes[model].add(ticket)
        return ticket


def give_memory_back() -> bool:
    """Let the C library return freed memory to the system; True where something was.

    Threads that decode images and answer leave holes in the arenas of glibc, which it keeps for itself otherwise: of 40
    MB by which a server grew over 1,000 requests 30 were such holes.
    """
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):  # another C library
        return False


async def finish(ticket: Ticket, request=None, poll_s: float = 0.1):
    """The outcome of a ticket; where the caller of `request` goes away, the work is cancelled.

    Raises:
        Problem: what became of it otherwise (`refused` makes errors of models into one).
    """
    future = asyncio.wrap_future(ticket.future)
    try:
        while not future.done():
            await asyncio.wait({future}, timeout=poll_s)
            if request is not None and not future.done() and await request.is_disconnected():
                raise Problem(499, "the caller went away", kind="server_error", code="cancelled")
        return future.result()
    finally:
        if not future.done():
            ticket.cancel()
            future.cancel()


async def in_thread(function, *args, **options):
    """Run what blocks on a thread."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **options))


def plain_problem(error: BaseException, stored: Stored | None = None) -> str:
    """The text of an error without the folders of the server."""
    message = str(error) or type(error).__name__
    if stored is not None:
        for place in (stored.path, *stored.path.parents):
            if place.name in ("data", stored.id) or place == stored.path:
                with contextlib.suppress(ValueError):
                    message = message.replace(f"{place}/", "").replace(
                        str(place), place.name if place.is_file() else "image"
                    )
    return " ".join(message.split())[:500]

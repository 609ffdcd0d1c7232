"""Questions of many callers, answered by one worker per model: queued, batched, cancelled, timed out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from unimed import progress
from unimed.inference.asking import Source, ask
from unimed.io.limits import limited
from unimed.io.result import Prediction
from unimed.serve.metrics import Metrics
from unimed.serve.pool import ModelPool, streams
from unimed.serve.problems import Problem, busy
from unimed.serve.settings import Settings
from unimed.serve.store import Cache


class Stopped(BaseException):
    """Nobody waits for this work any more. No `Exception`: what handles errors of a case must not swallow it."""


@dataclass(frozen=True, eq=False)
class Question:
    """One question. `source` is a `Source`, a list of `Image`s, or None; `content` identifies it by content.

    `how` are site, modality, window (of volumes), `options` what goes to the model; both decide what may be answered
    together. `history` are the turns before, `regions` what the text calls region1, region2, ...
    """

    owner: str
    text: str
    source: Any = None
    content: str = ""
    history: tuple[tuple[str, str], ...] = ()
    regions: tuple = ()
    regions_key: str = ""
    how: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    plane: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def is_volume(self) -> bool:
        return isinstance(self.source, Source) and self.source.is_volume

    def key(self, model: str) -> tuple | None:
        """What decides the answer; None where it is drawn by chance."""
        if dict(self.options).get("temperature"):
            return None
        return (self.owner, model, self.content, self.text, self.history, self.regions_key, self.how, self.options,
                self.plane, self.labels)  # fmt: skip


@dataclass
class Answer:
    """A prediction, how many tokens it took, whether it came to its end (False where it was cut), and its ids."""

    prediction: Prediction
    tokens: int = 0
    finished: bool = True
    cached: bool = False
    ids: tuple[int, ...] = ()


@dataclass(eq=False)
class Ticket:
    """A place in the queue: a `question`, or a `call` of the model (jobs), and the `future` of its outcome."""

    question: Question | None = None
    call: Callable[[Any], Any] | None = None
    on_text: Callable[[str], None] | None = None
    on_progress: Callable[[str, int, int | None], None] | None = None
    deadline: float = float("inf")
    start_by: float = float("inf")
    future: Future = field(default_factory=Future)
    created: float = field(default_factory=time.monotonic)
    tokens: int = 0
    finished: bool = True
    ids: tuple[int, ...] = ()
    tries: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits any more: it leaves the queue, or its work ends at the next step."""
        self._stop.set()

    @property
    def unwanted(self) -> bool:
        return self._stop.is_set() or time.monotonic() > self.deadline

    def settle(self, result=None, error: BaseException | None = None) -> bool:
        """Set the outcome, once; False where it was set before."""
        with contextlib.suppress(Exception):
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
            return True
        return False


class Named:
    """The part of a cache that belongs to one model."""

    def __init__(self, cache: Cache, name: str):
        self.cache, self.name = cache, name

    def get(self, key):
        return self.cache.get((self.name, key))

    def put(self, key, value, size: int) -> None:
        self.cache.put((self.name, key), value, size)


class Lane:
    """Queue and worker of one model."""

    def __init__(
        self, name: str, pool: ModelPool, settings: Settings, metrics: Metrics, answers: Cache,
        embeddings: Cache | None = None,
    ):  # fmt: skip
        self.embeddings = None if embeddings is None else Named(embeddings, name)
        self.name, self.pool, self.settings, self.metrics, self.answers = name, pool, settings, metrics, answers
        self.questions: deque[Ticket] = deque()
        self.calls: deque[Ticket] = deque()
        self.current: list[Ticket] = []
        self.ready = threading.Condition()
        self.closed = False
        self.seconds_each = 1.0  # a running mean, for Retry-After
        self.thread: threading.Thread | None = None

    def add(self, ticket: Ticket) -> None:
        """Raises Problem 429 where the queue is full, 503 where the server is closing."""
        with self.ready:
            if self.closed:
                raise Problem(503, "the server is closing", kind="server_error", code="closing", retry_after_s=10)
            if ticket.question is not None:
                if len(self.questions) >= self.settings.max_queue:
                    self.metrics.refused.labels("queue").inc()
                    wait = len(self.questions) * self.seconds_each
                    raise busy(f"{len(self.questions)} questions are waiting; try again later", wait)
                self.questions.append(ticket)
            else:
                self.calls.append(ticket)
            self._ensure()
            self.ready.notify_all()
        self.metrics.waiting.labels(self.name).set(len(self.questions))

    def watch(self) -> None:
        """Start a worker anew that died, and let go of what nobody waits for; called every now and then."""
        with self.ready:
            self._ensure()
            for queue in (self.questions, self.calls):
                for ticket in [ticket for ticket in queue if _gone(ticket)]:
                    queue.remove(ticket)
                    _let_go(ticket)
        self.metrics.waiting.labels(self.name).set(len(self.questions))

    def close(self, wait_s: float) -> None:
        """Answer what is at work, refuse the rest."""
        with self.ready:
            self.closed = True
            for ticket in [*self.questions, *self.calls]:
                ticket.settle(error=Problem(503, "the server is closing", kind="server_error", retry_after_s=10))
            self.questions.clear()
            self.calls.clear()
            for ticket in self.current:
                if ticket.call is not None:
                    ticket.cancel()  # a job goes on with the next server
            self.ready.notify_all()
        if self.thread is not None:
            self.thread.join(wait_s)
            for ticket in list(self.current):
                ticket.cancel()
            self.thread.join(5)

    def _ensure(self) -> None:
        if self.thread is not None and self.thread.is_alive() or (self.closed and not self.current):
            return
        if self.thread is not None:
            self.metrics.restarts.labels(self.name).inc()
            # What the dead worker had in its hands is tried once more.
            for ticket in reversed(self.current):
                ticket.tries += 1
                if ticket.tries > 1 or ticket.unwanted:
                    ticket.settle(error=Problem(500, "the worker died twice on this", kind="server_error"))
                elif not ticket.future.done():
                    (self.questions if ticket.question is not None else self.calls).appendleft(ticket)
            self.current = []
        self.thread = threading.Thread(target=self._run, name=f"model-{self.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            began = time.monotonic()
            if batch:
                with limited(self.settings.limits):
                    self._work(batch)
                each = (time.monotonic() - began) / len(batch)
                self.seconds_each += 0.2 * (each - self.seconds_each)
            with self.ready:
                self.current = []

    def _take(self) -> list[Ticket] | None:
        """The next tickets that can be answered together; None at the end."""
        with self.ready:
            while not self.questions and not self.calls:
                if self.closed:
                    return None
                self.ready.wait(0.5)
            queue = self.questions or self.calls
            first = queue.popleft()
            if _gone(first):
                _let_go(first)
                return []
            self.current = [first]
            if first.question is not None and not first.question.is_volume:
                for ticket in list(self.questions):
                    if len(self.current) >= self.settings.max_batch:
                        break
                    if _together(first.question, ticket.question):
                        self.questions.remove(ticket)
                        if _gone(ticket):
                            _let_go(ticket)
                        else:
                            self.current.append(ticket)
            self.metrics.waiting.labels(self.name).set(len(self.questions))
            return list(self.current)

    def _work(self, batch: list[Ticket]) -> None:
        try:
            model = self.pool.get(self.name)
            if self.embeddings is not None and hasattr(model, "embedding_cache"):
                model.embedding_cache = self.embeddings
            if batch[0].call is not None:
                with progress.watched(lambda one: _at_step(batch, one)):
                    results = [batch[0].call(model)]
            else:
                self.metrics.batches.labels(self.name).observe(len(batch))
                with progress.watched(lambda one: _at_step(batch, one)):
                    results = answer(model, batch, self._first_token)
        except Stopped:
            for ticket in batch:
                _let_go(ticket)
                self._count("cancelled")
        except Exception as error:
            if len(batch) > 1:  # one of them cannot be asked: the others are answered all the same
                for ticket in batch:
                    self._work([ticket])
                return
            batch[0].settle(error=error)
            self._count("failed")
        else:
            for ticket, result in zip(batch, results, strict=True):
                key = None if ticket.question is None else ticket.question.key(self.name)
                if key is not None:
                    self.answers.put(key, result, size_of(result.prediction))
                ticket.settle(result)
                self._count("answered" if ticket.question is not None else "job")

    def _first_token(self, ticket: Ticket) -> None:
        self.metrics.first_token.labels(self.name).observe(time.monotonic() - ticket.created)

    def _count(self, outcome: str) -> None:
        self.metrics.answers.labels(self.name, outcome).inc()


def answer(model, batch: list[Ticket], first_token: Callable[[Ticket], None] = lambda ticket: None) -> list[Answer]:
    """Answers to questions that go together; of one question where the model cannot batch."""
    questions = [ticket.question for ticket in batch]
    first = questions[0]
    if first.is_volume or not streams(model):
        return [_alone(model, ticket) for ticket in batch]

    def watch(number: int, row) -> None:
        ticket = batch[number]
        if not ticket.tokens:
            first_token(ticket)
        ticket.tokens, ticket.finished, ticket.ids = len(row.ids), row.finished, row.ids
        if ticket.on_text is not None and not ticket.unwanted:
            ticket.on_text(stable_text(model.processor.parse(row.ids).text))
        if all(ticket.unwanted for ticket in batch):
            raise Stopped

    options = dict(first.options)
    if (seed := options.pop("seed", None)) is not None:
        import torch

        options["generator"] = torch.Generator(device=model.device).manual_seed(seed % 2**63)
    regions = [list(q.regions) or None for q in questions]
    found = model.predict_batch(
        [_image(q.source) for q in questions], [q.text for q in questions], regions,
        history=[q.history for q in questions], watch=watch, batch_size=len(batch), **options,
    )  # fmt: skip
    return [Answer(one, t.tokens, t.finished, ids=tuple(t.ids)) for one, t in zip(found, batch, strict=True)]


def _alone(model, ticket: Ticket) -> Answer:
    question = ticket.question
    if not isinstance(question.source, Source):
        raise Problem(400, "this model is asked about one image or volume", param="messages")
    known = dict(question.options)
    known.pop("seed", None)
    if not streams(model):
        known = {}
    texts = list(question.labels) if hasattr(model, "zero_shot") else [question.text]
    if hasattr(model, "zero_shot") and len(texts) < 2:
        raise Problem(400, "this model compares labels: write at least two, one per line", param="messages")
    if question.regions:
        known["regions"] = list(question.regions)
    found = ask(model, question.source, texts, plane=question.plane, how=dict(question.how), **known)
    return Answer(found[0])


def _image(source):
    return source.content if isinstance(source, Source) else source


def stable_text(text: str) -> str:
    """The part of an unfinished text that will not change: up to its last blank."""
    return text[: text.rfind(" ")] if " " in text else ""


def size_of(prediction: Prediction) -> int:
    """About how many bytes a prediction takes."""
    masks = sum(r.mask.nbytes for r in prediction.regions if prediction.labels is None and r.mask is not None)
    return 2000 + masks + (0 if prediction.labels is None else prediction.labels.nbytes)


def _together(first: Question, other: Question) -> bool:
    return not other.is_volume and first.options == other.options and first.how == other.how and (
        not dict(first.options).get("temperature")
    )  # fmt: skip


def _at_step(batch: list[Ticket], one) -> None:
    if all(ticket.unwanted for ticket in batch):
        raise Stopped
    for ticket in batch:
        if ticket.on_progress is not None:
            ticket.on_progress(one.what, one.done, one.total)


def _gone(ticket: Ticket) -> bool:
    return ticket.unwanted or time.monotonic() > ticket.start_by or ticket.future.done()


def _let_go(ticket: Ticket) -> None:
    late = time.monotonic() > min(ticket.deadline, ticket.start_by)
    reason = "it took too long" if time.monotonic() > ticket.deadline else "it waited too long for the model"
    ticket.settle(
        error=Problem(504 if late else 499, reason if late else "cancelled", kind="server_error", code="timeout")
    )

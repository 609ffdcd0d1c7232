"""Long work over folders, DICOM studies and volumes: kept on disk, and taken up again by the next server."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unimed.files import append_json_line, json_text, read_json, read_json_lines, resolve_inside, write_text
from unimed.inference.answering import answer_source
from unimed.inference.asking import find_sources, open_source
from unimed.inference.runs import run_cases
from unimed.io.limits import limited
from unimed.io.result import writer_of
from unimed.names import ResultNames
from unimed.serve.problems import Problem, busy, missing
from unimed.serve.work import Stopped
from unimed.structures import Case

LOG = logging.getLogger("unimed.serve")
_ID = re.compile(r"[0-9a-f]{32}")
#: States in which a job stays; "partly" is done with failed cases.
#: Folder below the root that `unimed mcp` writes to by default.
RESULTS = "unimed-results"
ENDED = ("done", "partly", "failed", "cancelled")
_PROGRESS_S = 0.5


class JobRequest(BaseModel):
    """A job: `texts` asked of everything at `path` (a file or folder below the server's root) or of uploads."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    path: str | None = Field(None, max_length=4096)
    images: list[str] = Field(default_factory=list, max_length=1000)
    texts: list[str] = Field(min_length=1, max_length=64)
    formats: list[str] = Field(default_factory=list, max_length=32)
    site: str = Field("", max_length=64)
    modality: str = Field("", max_length=16)
    window: tuple[float, float] | None = None
    plane: Literal["axial", "coronal", "sagittal"] | None = None
    page: int | None = Field(None, ge=0)
    series: str | None = Field(None, max_length=128)
    phase: str | None = Field(None, max_length=64)
    irregular: Literal["refuse", "resample"] = "refuse"
    task: str | None = Field(None, max_length=32)
    max_new_tokens: int = Field(256, ge=1)
    deidentified: bool = False


@dataclass(eq=False)
class Job:
    """A job and where it stands. `folder` holds job.json, events.jsonl and out/."""

    id: str
    owner: str
    kind: str
    request: dict[str, Any]
    folder: Path
    state: str = "queued"
    created: float = field(default_factory=time.time)
    ended: float | None = None
    done: int = 0
    total: int | None = None
    failed: int = 0
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    _written: float = 0.0

    def to_dict(self) -> dict:
        """What the owner is told."""
        return {"id": self.id, "object": "job", "kind": self.kind, "state": self.state, "created": int(self.created),
                "ended": None if self.ended is None else int(self.ended), "done": self.done, "total": self.total,
                "failed": self.failed, "error": self.error or None, "request": self.request}  # fmt: skip

    def save(self) -> None:
        values = self.to_dict() | {"owner": self.owner, "created": self.created, "ended": self.ended}
        write_text(self.folder / "job.json", json_text(values))

    def event(self, kind: str, **values) -> None:
        """Add a line to the events; progress at most twice a second."""
        now = time.time()
        if kind == "progress" and now - self._written < _PROGRESS_S:
            return
        self._written = now
        row = {"event": kind, "time": round(now, 3), "state": self.state, "done": self.done, "total": self.total}
        append_json_line(self.folder / "events.jsonl", row | values)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def rows(self) -> list[dict]:
        """Finished cases, as `unimed predict --json` prints them."""
        return _rows(self.out / "cases.jsonl", ("content", "source_id"))

    def failures(self) -> list[dict]:
        return _rows(self.out / "failed.jsonl", ())


class Jobs:
    """Jobs of all owners below a folder, worked on by one thread per model.

    `kinds` maps the kind of a job to what does it, `work(jobs, job)`; doors may add their own.
    """

    def __init__(self, core):
        self.core, self.folder = core, core.settings.state / "jobs"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.kinds: dict[str, Callable[[Jobs, Job], None]] = {"predict": predict_job}
        self._jobs: dict[str, Job] = {}
        self._lock, self._ready = threading.Lock(), threading.Condition()
        self._closed, self._started, self._threads = False, False, []
        self._held = contextlib.ExitStack()
        for place in sorted(self.folder.iterdir()):
            if (job := _found(place)) is not None:
                self._jobs[job.id] = job

    def start(self) -> None:
        """Go on with the unfinished jobs of an earlier server."""
        for job in list(self._jobs.values()):
            if job.state not in ENDED:
                job.state = "queued"
                job.event("resumed")
                job.save()
        self._started = True
        for name in self.core.lanes:
            self.work_for(name)

    def work_for(self, model: str) -> None:
        """Work on the jobs of one model, once the server has started."""
        if self._started and not self._closed:
            thread = threading.Thread(target=self._run, args=(model,), name=f"jobs-{model}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop at the next step; unfinished jobs stay and go on with the next server."""
        with self._ready:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(10)

    # -- of owners ----------------------------------------------------------------------------------------------
    def add(self, owner: str, request: JobRequest) -> Job:
        """A new job of kind "predict".

        Raises:
            Problem: 400, a path, format or text nobody can use; 404, no such upload; 429, too many unfinished jobs.
        """
        values = request.model_dump()
        values["model"] = self.core.pool.name_of(request.model)
        values["max_new_tokens"] = min(request.max_new_tokens, self.core.settings.max_new_tokens)
        if not all(text.strip() for text in request.texts) or sum(map(len, request.texts)) > 100_000:
            raise Problem(400, "a text is empty, or they are longer than 100000 characters", param="texts")
        if bool(request.images) == (request.path is not None):
            raise Problem(400, "give either path or images", param="path")
        for form in request.formats:
            try:
                writer_of(form)
            except ValueError as error:
                raise Problem(400, str(error), param="formats") from error
        for id_ in request.images:
            self.core.images.get(owner, id_)
        if request.path is not None:
            inside(self.core.settings.root, request.path)
        return self.put(owner, "predict", values)

    def put(self, owner: str, kind: str, request: dict[str, Any]) -> Job:
        """Queue a job of a known kind; `request` (JSON values) names its `model`."""
        with self._lock:
            unfinished = sum(j.owner == owner and j.state not in ENDED for j in self._jobs.values())
        if unfinished >= self.core.settings.max_jobs:
            self.core.metrics.refused.labels("jobs").inc()
            raise busy(f"{unfinished} jobs of yours are not finished", 30)
        id_ = secrets.token_hex(16)
        folder = self.folder / id_
        folder.mkdir(mode=0o700)
        job = Job(id_, owner, kind, request, folder)
        job.save()
        job.event("queued")
        with self._ready:
            self._jobs[id_] = job
            self._ready.notify_all()
        return job

    def get(self, owner: str, id_: str) -> Job:
        """Raises Problem 404 for an unknown id and for that of another owner."""
        job = self._jobs.get(id_) if _ID.fullmatch(id_) else None
        if job is None or job.owner != owner:
            raise missing("job")
        return job

    def of(self, owner: str) -> list[Job]:
        return sorted((j for j in list(self._jobs.values()) if j.owner == owner), key=lambda j: j.created)

    def cancel(self, job: Job) -> None:
        """Stop a job at its next step; what it wrote stays until it is deleted."""
        with self._ready:
            if job.state in ENDED:
                return
            job.stop.set()
            if job.state == "queued":
                self._end(job, "cancelled")

    def delete(self, job: Job, wait_s: float = 60) -> None:
        """Cancel and remove a job with its files."""
        self.cancel(job)
        end = time.monotonic() + wait_s
        while job.state not in ENDED and time.monotonic() < end:
            time.sleep(0.02)
        self._jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def reap(self, idle_s: float) -> None:
        """Delete jobs that ended so long ago."""
        for job in list(self._jobs.values()):
            if job.state in ENDED and job.ended is not None and time.time() - job.ended > idle_s:
                self.delete(job)

    def counts(self) -> dict[str, int]:
        found = dict.fromkeys(("queued", "running", *ENDED), 0)
        for job in list(self._jobs.values()):
            found[job.state] += 1
        return found

    # -- work ---------------------------------------------------------------------------------------------------
    def _next(self, model: str) -> Job | None:
        with self._ready:
            while not self._closed:
                waiting = [j for j in self._jobs.values() if j.state == "queued" and j.request["model"] == model]
                if waiting:
                    job = min(waiting, key=lambda j: j.created)
                    job.state = "running"
                    return job
                self._ready.wait(1)
        return None

    def _run(self, model: str) -> None:
        while (job := self._next(model)) is not None:
            try:
                job.save()
                job.event("started")
                with limited(self.core.settings.limits):
                    self.kinds[job.kind](self, job)
                if job.state == "running":
                    self._end(job, "done" if not job.failed else "partly" if job.done > job.failed else "failed")
            except Stopped:
                if self._closed:
                    job.state = "queued"
                    job.save()
                else:
                    self._end(job, "cancelled")
            except Exception as error:
                LOG.error("job failed", extra={"values": {"job": job.id, "error": type(error).__name__}})
                message = error.message if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
                job.error = _without_folders(message, job, self.core.settings.root)
                self._end(job, "failed")

    def _end(self, job: Job, state: str) -> None:
        job.state, job.ended = state, time.time()
        with contextlib.suppress(OSError):
            job.save()
            job.event("ended", **({"error": job.error} if job.error else {}))

    def on_model(self, job: Job, work: Callable[[Any], Any]) -> Any:
        """What `work(model)` returns; it runs on the worker of the model, between the questions of others.

        Raises:
            Stopped: the job was cancelled, or the server closes.
        """

        def told(what: str, done: int, total: int | None) -> None:
            job.event("progress", step=what, step_done=done, step_total=total)

        ticket = self.core.call(job.request["model"], work, told)
        while not ticket.future.done():
            if job.stop.wait(0.02):
                ticket.cancel()
            if self._closed and not ticket.future.done():
                break
        if job.stop.is_set():
            with contextlib.suppress(BaseException):
                ticket.future.result(timeout=30)
            raise Stopped
        return ticket.future.result()


def predict_job(jobs: Jobs, job: Job) -> None:
    """Ask about every source of a job; cases that an earlier server finished are not asked again."""
    core, request = jobs.core, job.request
    with contextlib.ExitStack() as held:
        if request["path"] is not None:
            paths = found_inside(core.settings.root, request["path"])
        else:
            paths = [held.enter_context(core.images.held(job.owner, id_)).path for id_ in request["images"]]
        names = ResultNames(job.out).all(paths)
        cases = [Case(name, {"path": path}) for name, path in zip(names, paths, strict=True)]
        how = {key: request[key] for key in ("site", "modality", "window")}
        choices = {key: request[key] for key in ("series", "phase", "irregular")}
        job.total = len(cases)
        if (job.out / "cases.jsonl").is_file():
            job.done = len(job.rows())

        def one(model, case: Case) -> dict:
            windows = getattr(model.config, "ct_windows", None)
            more = {} if windows is None else {"windows": windows}
            source = open_source(case.inputs["path"], choices=choices, page=request["page"], **how, **more)
            options = {"max_new_tokens": request["max_new_tokens"], "task": request["task"]}
            return answer_source(
                model, source, request["texts"], job.out, plane=request["plane"], how=how,
                formats=request["formats"], deidentified=request["deidentified"], **options,
            )  # fmt: skip

        def predict(batch):
            (case,) = batch
            if job.stop.is_set():
                raise Stopped
            try:
                row = jobs.on_model(job, lambda model: one(model, case))
            except Exception as error:
                job.done, job.failed = job.done + 1, job.failed + 1
                message = _without_folders(f"{type(error).__name__}: {error}", job, core.settings.root)
                job.event("case", case=case.name, error=message)
                raise ValueError(message) from error
            job.done += 1
            job.event("case", case=case.name)
            return [row]

        reference = jobs.on_model(job, lambda model: getattr(model.config, "_name_or_path", ""))
        settings = {**request, "model": reference or request["model"]}
        job.failed = 0
        report = run_cases(cases, predict, job.out, settings=settings)
        job.done, job.failed = len(report.rows) + len(report.failed), len(report.failed)


def inside(root: Path | None, name: str) -> Path:
    """The path of a file or folder below the server's root, links resolved.

    Raises:
        Problem: 400, no root, or the name leads out of it; 404, nothing there.
    """
    if root is None:
        raise Problem(400, "this server takes no paths (it was started without a root); upload the images",
                      param="path")  # fmt: skip
    if name.strip() in (".", "./", ""):
        return Path(root)
    try:
        path = resolve_inside(root, name)
        real, base = os.path.realpath(path), os.path.realpath(root)
    except (ValueError, OSError) as error:
        raise Problem(400, "the path is not below the root of the server", param="path") from error
    if real != base and not real.startswith(base.rstrip(os.sep) + os.sep):
        raise Problem(400, "the path is not below the root of the server", param="path")
    if not os.path.exists(real):
        raise Problem(404, "nothing at this path", param="path", code="not_found")
    return path


def found_inside(root: Path | None, name: str) -> list[Path]:
    """Sources at a path below the root; links that lead out of it are left out, and so are results of `unimed mcp` that
    lie deeper (`RESULTS`): what was found is not asked about again.

    Raises:
        Problem: see `inside`; 400 where nothing readable is there.
    """
    place = inside(root, name)
    try:
        found = find_sources([place])
    except FileNotFoundError as error:
        raise Problem(400, "no image and no volume at this path", param="path") from error
    base = os.path.realpath(root)
    kept = [path for path in found if os.path.realpath(path).startswith(base.rstrip(os.sep) + os.sep)
            or os.path.realpath(path) == base]  # fmt: skip
    kept = [path for path in kept if path == place or RESULTS not in path.relative_to(place).parts]
    if not kept:
        raise Problem(400, "no image and no volume at this path", param="path")
    return kept


def _without_folders(message: str, job: Job, root: Path | None) -> str:
    for place in (job.out, job.folder, *(() if root is None else (root, Path(os.path.realpath(root))))):
        message = message.replace(f"{place}/", "").replace(str(place), ".")
    message = re.sub(r"/\S*/images/[0-9a-f]{32}/(data/?)?", "", message)
    return " ".join(message.split())[:500]


def _rows(path: Path, without: tuple[str, ...]) -> list[dict]:
    if not path.is_file():
        return []
    rows = (row for _, row in read_json_lines(path, torn_end=True))
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


def _found(place: Path) -> Job | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = read_json(place / "job.json")
        if _ID.fullmatch(place.name) and values["id"] == place.name:
            return Job(
                values["id"], values["owner"], values["kind"], values["request"], place, values["state"],
                values["created"], values["ended"], values["done"], values["total"], values["failed"],
                values["error"] or "",
            )  # fmt: skip
    return None

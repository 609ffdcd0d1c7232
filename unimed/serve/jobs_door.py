"""The routes of jobs: start, watch (NDJSON), fetch results and files, cancel, delete."""

from __future__ import annotations

import asyncio
import json

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, StreamingResponse

from unimed.files import resolve_inside
from unimed.serve.access import owner
from unimed.serve.core import Core, in_thread
from unimed.serve.jobs import ENDED, Job, JobRequest, Jobs
from unimed.serve.problems import Problem, missing


def jobs_door(core: Core) -> APIRouter:
    """`/v1/jobs`; makes `core.jobs`."""
    core.jobs = jobs = Jobs(core)
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    @router.post("", status_code=202, summary="Ask about a folder, a DICOM study, volumes or uploads")
    async def start(body: JobRequest, who: str = Depends(owner)):
        return (await in_thread(jobs.add, who, body)).to_dict()

    @router.get("", summary="Your jobs, oldest first")
    def of(who: str = Depends(owner)):
        return {"object": "list", "data": [job.to_dict() for job in jobs.of(who)]}

    @router.get("/{id_}", summary="Where a job stands")
    def get(id_: str, who: str = Depends(owner)):
        return jobs.get(who, id_).to_dict()

    @router.get("/{id_}/events", summary="Progress as NDJSON, from the beginning until the job ends")
    async def events(id_: str, who: str = Depends(owner)):
        job = jobs.get(who, id_)
        return StreamingResponse(_lines(core, job), media_type="application/x-ndjson",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip

    @router.get("/{id_}/result", summary="Answers of all cases; 409 while it is not finished")
    async def result(id_: str, who: str = Depends(owner)):
        job = jobs.get(who, id_)
        if job.state not in ENDED:
            raise Problem(409, f"the job is {job.state}", code="not_finished")
        if job.state == "failed" and not job.out.is_dir():
            raise Problem(500, job.error or "the job failed", kind="server_error", code="job_failed")
        return job.to_dict() | {
            "rows": await in_thread(job.rows), "failures": await in_thread(job.failures), "files": _files(job),
        }  # fmt: skip

    @router.get("/{id_}/files", summary="Names of the result files")
    def files(id_: str, who: str = Depends(owner)):
        return {"object": "list", "data": _files(jobs.get(who, id_))}

    @router.get("/{id_}/files/{name}", summary="One result file")
    def one(id_: str, name: str, who: str = Depends(owner)):
        job = jobs.get(who, id_)
        if name not in {entry["name"] for entry in _files(job)}:
            raise missing("file")
        return FileResponse(resolve_inside(job.out, name), filename=name, content_disposition_type="attachment")

    @router.post("/{id_}/cancel", summary="Stop a job; its files stay")
    def cancel(id_: str, who: str = Depends(owner)):
        job = jobs.get(who, id_)
        jobs.cancel(job)
        return job.to_dict()

    @router.delete("/{id_}", summary="Stop a job and delete its files")
    async def delete(id_: str, who: str = Depends(owner)):
        await in_thread(jobs.delete, jobs.get(who, id_))
        return {"id": id_, "object": "job", "deleted": True}

    return router


def _files(job: Job) -> list[dict]:
    """Result files; the state of the run is none."""
    if not job.out.is_dir():
        return []
    own = ("cases.jsonl", "failed.jsonl", "run.json", "progress.jsonl")
    found = [p for p in sorted(job.out.iterdir()) if p.is_file() and p.name not in own and not p.name.startswith(".")]
    return [{"name": path.name, "bytes": path.stat().st_size} for path in found]


async def _lines(core: Core, job: Job):
    """Whole lines of the events of a job until it ends, the server closes or the job is deleted."""
    path, place, left = job.folder / "events.jsonl", 0, b""
    while True:
        ended = job.state in ENDED  # looked at first: the last line is written before or soon after
        try:
            new = await in_thread(_from, path, place)
        except OSError:
            return
        place += len(new)
        *lines, left = (left + new).split(b"\n")
        for line in lines:
            yield line + b"\n"
            if json.loads(line)["event"] == "ended":
                return
        if core.closing or (ended and not new):
            return
        await asyncio.sleep(0.1)


def _from(path, place: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(place)
        return stream.read()

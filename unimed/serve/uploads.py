"""Uploads: once up, an image is asked about by its id."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, File, Request, UploadFile
from fastapi.responses import JSONResponse

from unimed.serve.access import owner
from unimed.serve.core import Core, in_thread
from unimed.serve.problems import Problem


def uploads_door(core: Core) -> APIRouter:
    """POST, GET and DELETE of `/v1/images`."""
    router = APIRouter(prefix="/v1/images", tags=["images"])
    writing = asyncio.Semaphore(4)  # uploads wait on the disk, not in memory

    @router.post("", status_code=201, summary="Keep a file, or the files of one DICOM series, under an id")
    async def put(file: list[UploadFile] = File(...), who: str = Depends(owner)):  # noqa: B008
        most = core.settings.limits.file_bytes
        if len(file) > 10_000:
            raise Problem(400, "more than 10000 files in one upload", param="file")
        async with writing:
            return await take(who, file, most)

    async def take(who: str, file: list[UploadFile], most: int) -> dict:
        files = []
        for one in file:
            if (one.size or 0) > most:
                raise Problem(413, f"a file is larger than {most} bytes", param="file", code="too_large")
            files.append((one.filename or "image", await one.read()))
        return (await in_thread(core.images.put, who, files)).to_dict()

    @router.get("", summary="Your uploads")
    def of(who: str = Depends(owner)):
        return {"object": "list", "data": [stored.to_dict() for stored in core.images.of(who)]}

    @router.get("/{id_}", summary="Size and shape of an upload")
    async def get(id_: str, who: str = Depends(owner)):
        with core.images.held(who, id_) as stored:
            source = await in_thread(core.open, stored)
            shape = source.content.array.shape if source.is_volume else source.content.rgb.shape[:2]
            geometry = source.content.geometry
            return stored.to_dict() | {
                "kind": "volume" if source.is_volume else "image", "shape": [int(n) for n in shape],
                "spacing_mm": [float(s) for s in geometry.spacing] if geometry.is_physical else None,
            }  # fmt: skip

    @router.delete("/{id_}", summary="Delete an upload and what was cached of it")
    async def delete(id_: str, request: Request, who: str = Depends(owner)):
        stored = core.images.get(who, id_)
        await in_thread(core.images.delete, who, id_)
        core.forget(stored)
        return JSONResponse({"id": id_, "object": "image", "deleted": True})

    return router

"""MONAI Label's routes for clients as they are: 3D Slicer's extension, OHIF's, and the class `MONAILabelClient`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response

from unimed.inference.asking import kind_of, worded
from unimed.io.windows import CT_WINDOWS_HU
from unimed.names import safe_name, without_suffix
from unimed.serve.access import owner
from unimed.serve.chat import problem_of
from unimed.serve.core import Core, finish, in_thread
from unimed.serve.monai_label.answers import file_of, labeled, multipart, numbered
from unimed.serve.monai_label.datastore import Datastores
from unimed.serve.monai_label.datastore_routes import datastore_routes
from unimed.serve.monai_label.questions import ANY_SITE, how_of, parameters_of, targets_of
from unimed.serve.monai_label.tasks import STRATEGIES, Tasks, task_routes
from unimed.serve.problems import Problem
from unimed.serve.settings import owner_of
from unimed.serve.store import Stored
from unimed.serve.work import Question
from unimed.version import __version__


def monai_label_door(
    core: Core, labels: tuple[str, ...] = (), series: Callable[[str, str], Path | None] = lambda owner, uid: None
) -> APIRouter:
    """MONAI Label's REST interface at the root of the server.

    Args:
        labels: names that every client knows beforehand; those of submitted labels come behind them.
        series: owner and UID of a DICOM series -> its folder, where the server has one (`dicom_web.index.Index`).
    """
    stores = Datastores(core.settings.state / "monai_label", core.settings.root, core.settings.max_owner_bytes, series)
    tasks = Tasks(core, stores, labels)
    router = APIRouter(tags=["MONAI Label"])
    router.include_router(datastore_routes(core, stores, tasks))
    router.include_router(task_routes(tasks))

    @router.get("/info/", summary="Models, labels, strategies")
    async def info(who: str = Depends(owner)):
        store = stores.of(who)
        names = tasks.names(store)
        models = {name: _model(core, name, names) for name in core.pool.names if _draws(core, name)}
        if (adapted := tasks.adapted(who)) is not None:
            models[adapted[0]] = _model(core, adapted[1], names)
        return {
            "name": "unimed", "description": "text to masks; research use only, not a medical device",
            "version": __version__, "labels": list(numbered(names)), "models": models, "trainers": tasks.trainers(),
            "strategies": {name: {"description": text} for name, text in STRATEGIES.items()}, "scoring": {},
            "train_stats": {}, "datastore": store.status(),
        }  # fmt: skip

    @router.post("/infer/{model}", summary="A label map of what `prompt` names")
    async def infer(
        model: str, request: Request, image: str = "", session_id: str = "", output: str = "", params: str = Form("{}"),
        file: UploadFile | None = File(None), who: str = Depends(owner),  # noqa: B008
    ):  # fmt: skip
        began = time.monotonic()
        asked = parameters_of(params)
        lane = tasks.lane(who, model)
        if file is not None and file.filename:
            content = await file.read()
            stored = await in_thread(core.images.put, who, [(Path(file.filename).name, content)])
            try:
                source = await in_thread(core.open, stored, lane, **how_of(asked))
            finally:
                await in_thread(core.images.delete, who, stored.id)
        else:
            stored = await in_thread(_stored, core, stores, who, image, session_id)
            chosen = {} if session_id else await in_thread(stores.of(who).choices, image)
            source = await in_thread(core.open, stored, lane, **how_of(asked), **chosen)
        opened = time.monotonic()
        known = tasks.names(stores.of(who))
        targets, note = targets_of(asked, known)
        found = await _answers(core, who, lane, source, stored, targets, asked, request)
        made = await in_thread(labeled, source, found, known)
        if image and not session_id and file is None and made.uncertainty is not None:
            await in_thread(stores.of(who).note, image, {"uncertainty": made.uncertainty})
        params = {
            "label_names": dict(made.names), "phrases": {str(n): phrase for n, phrase in made.phrases.items()},
            "presence": {str(n): value for n, value in made.presence.items()}, "text": made.prediction.text or note,
            "uncertainty": made.uncertainty, "notice": "research use only", "centroids": {},
            "latencies": {"pre": round(opened - began, 3), "infer": round(time.monotonic() - opened, 3),
                          "total": round(time.monotonic() - began, 3)},
        }  # fmt: skip
        if output == "json":
            return JSONResponse(params)
        kind = ".seg.nrrd" if asked.get("overlaps") is True and output != "image" else ".nrrd"
        raw = output == "image" or asked.get("result_compress") is False
        content = await in_thread(file_of, made, kind, raw=raw)
        if output == "image":
            return Response(content, media_type="application/octet-stream")
        # Slicer reads no answer without a file, so one of zeros says that nothing was found.
        kind = ".nrrd" if not made.prediction.regions else kind
        body, media = multipart(params, f"{safe_name(without_suffix(stored.path.name))}{kind}", content)
        return Response(body, media_type=media)

    _sessions(router, core)
    _logins(router, core)
    return router


def _draws(core: Core, name: str) -> bool:
    model = core.pool.loaded(name)
    return model is None or kind_of(model) != "labels"


def _model(core: Core, name: str, names: list[str]) -> dict:
    return {"type": "segmentation", "labels": numbered(names), "dimension": 3,
            "description": "text to masks, research use only",
            # What stands here becomes the form of Slicer and of OHIF, and comes back in `params`.
            "config": {"prompt": "", "site": [ANY_SITE, *sorted(CT_WINDOWS_HU)], "overlaps": False}}  # fmt: skip


def _stored(core: Core, stores: Datastores, who: str, image: str, session_id: str) -> Stored:
    if session_id:
        return core.images.get(who, session_id)
    if not image:
        raise Problem(400, "give image, session_id or file", param="image")
    return stores.of(who).stored(image)


async def _answers(core: Core, who: str, lane: str, source, stored, targets, asked: dict, request) -> list:
    """One prediction per target; they wait in the queue one after another, as those of a chat do."""
    model = await in_thread(core.pool.get, lane)
    if kind_of(model) == "labels":
        raise Problem(400, "this model compares labels and draws nothing", param="model")
    how = {"site": "", "modality": "", "window": None} | how_of(asked)
    options = (("max_new_tokens", core.settings.max_new_tokens),)
    found = []
    for text in worded(model, targets):
        question = Question(who, text, source, stored.digest + "monai", how=tuple(how.items()), options=options)
        try:
            found.append((await finish(core.submit(lane, question), request)).prediction)
        except Problem:
            raise
        except Exception as error:
            raise problem_of(error) from error
    return found


def _sessions(router: APIRouter, core: Core) -> None:
    """Sessions are uploads that are deleted when nobody uses them."""

    def told(stored: Stored, expiry: int) -> dict:
        values = {"name": stored.path.name, "path": "", "image": "", "meta": {}, "create_ts": int(stored.created),
                  "last_access_ts": int(stored.used), "expiry": expiry}  # fmt: skip
        return {"session_id": stored.id, "session_info": values}

    @router.put("/session/", summary="Keep the files of an image for a while")
    async def put(
        files: list[UploadFile] = File(...), uncompress: bool = False, expiry: int = 0, who: str = Depends(owner),  # noqa: B008
    ):  # fmt: skip
        if uncompress or any((one.filename or "").lower().endswith(".zip") for one in files):
            raise Problem(400, "archives are not unpacked; send the files themselves", param="files")
        parts = [(one.filename or "image", await one.read()) for one in files]
        stored = await in_thread(core.images.put, who, parts)
        return told(stored, int(core.settings.idle_image_s))

    @router.get("/session/{id_}", summary="A session, or with image=true its file")
    async def get(id_: str, image: bool = False, update_ts: bool = False, who: str = Depends(owner)):
        stored = core.images.get(who, id_)
        if not image:
            return told(stored, int(core.settings.idle_image_s))
        if stored.path.is_dir():
            raise Problem(400, "the session holds a series of files", param="image")
        return FileResponse(stored.path, filename=stored.path.name)

    @router.delete("/session/{id_}", summary="End a session and delete its files")
    async def delete(id_: str, who: str = Depends(owner)):
        stored = core.images.get(who, id_)
        await in_thread(core.images.delete, who, id_)
        core.forget(stored)
        return {}


def _logins(router: APIRouter, core: Core) -> None:
    """Slicer asks for user and password: the owner and the token of `--tokens`."""

    @router.get("/auth/", summary="Whether a login is needed")
    def needed():
        return {"enabled": bool(core.settings.tokens)}

    @router.post("/auth/token", summary="The token of an owner who gives it as password")
    async def token(username: str = Form(..., max_length=200), password: str = Form(..., max_length=1000)):
        if owner_of(password, core.settings.tokens) != username:
            core.metrics.refused.labels("token").inc()
            await asyncio.sleep(0.5)
            raise Problem(401, "user and password do not belong together", kind="authentication_error")
        return {"access_token": password, "token_type": "bearer"}

    @router.get("/auth/token/valid", summary="Whether the token is known")
    def valid(who: str = Depends(owner)):
        return {"username": who}

    @router.get("/logs/", summary="No log is given out: it speaks of all owners")
    def logs(lines: int = Query(300), who: str = Depends(owner)):
        return Response("", media_type="text/plain")

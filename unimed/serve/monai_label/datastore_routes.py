"""Routes of the datastore: images, labels, the next image to label."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask

from unimed.names import without_suffix
from unimed.serve.access import owner
from unimed.serve.core import Core, in_thread
from unimed.serve.monai_label.answers import check_label, from_viewer, image_file
from unimed.serve.monai_label.datastore import FINAL, LABEL_SUFFIXES, Datastore, Datastores
from unimed.serve.monai_label.questions import parameters_of
from unimed.serve.monai_label.tasks import STRATEGIES, Tasks
from unimed.serve.problems import Problem, missing


def datastore_routes(core: Core, stores: Datastores, tasks: Tasks) -> APIRouter:
    router = APIRouter()

    @router.post("/activelearning/{strategy}", summary="The next image that nobody has labelled; {} when none is left")
    async def following(strategy: str, who: str = Depends(owner)):
        if strategy not in STRATEGIES:
            raise missing("strategy", strategy)
        store = stores.of(who)
        name, weight = await in_thread(choose, store, strategy)
        if name is None:
            return {}
        path = store.path(name)
        suffix, digest = await in_thread(_checksum, core, store, name)
        return {
            **store.info(name), "id": name, "weight": weight, "name": f"{name}{suffix}", "path": "",
            "ts": int(path.stat().st_mtime), "url": f"/datastore/image?image={quote(name)}",
            "checksum": f"SHA256:{digest}",
        }  # fmt: skip

    @router.get("/datastore/", summary="Counts, pairs for training, or everything")
    async def listed(output: str = "stats", who: str = Depends(owner)):
        store = stores.of(who)
        if output == "all":
            return {"objects": await in_thread(store.objects)}
        if output == "train":
            return [{"image": name, "label": name} for name in await in_thread(store.labels)]
        return await in_thread(store.status)

    async def put_image(image: str = "", file: UploadFile = File(...), who: str = Depends(owner)):  # noqa: B008
        most = core.settings.limits.file_bytes
        if (file.size or 0) > most:
            raise Problem(413, f"the file is larger than {most} bytes", param="file", code="too_large")
        content = await file.read()
        return {"image": await in_thread(stores.of(who).put_image, image, file.filename or "", content)}

    router.put("/datastore/", summary="Add an image (Slicer's route)")(put_image)
    router.put("/datastore/image", summary="Add an image")(put_image)

    @router.get("/datastore/image", summary="The file of an image")
    async def get_image(image: str, who: str = Depends(owner)):
        store = stores.of(who)
        path = store.path(image)
        if path.is_file():
            return FileResponse(path, filename=path.name)
        suffix, content = await in_thread(_converted, core, store, image)
        return _attached(content, f"{without_suffix(image)}{suffix}")

    @router.head("/datastore/image", summary="Whether an image is there, with this sum")
    async def has_image(image: str, check_sum: str = "", who: str = Depends(owner)):
        store = stores.of(who)
        store.path(image)
        if check_sum and (await in_thread(_checksum, core, store, image))[1] != check_sum.removeprefix("SHA256:"):
            raise missing("image")
        return Response()

    @router.delete("/datastore/image", summary="Delete an image that was uploaded, and its labels")
    async def delete_image(id_: str = Query(alias="id"), who: str = Depends(owner)):
        await in_thread(stores.of(who).delete_image, id_)
        return {}

    @router.put("/datastore/label", summary="Submit the label of an image")
    async def put_label(
        image: str,
        tag: str = FINAL,
        params: str = Form("{}"),
        label: UploadFile = File(...),  # noqa: B008
        who: str = Depends(owner),
    ):
        store = stores.of(who)
        content, name = await label.read(), (label.filename or "").replace("\\", "/").rsplit("/", 1)[-1]
        suffix = name[len(without_suffix(name)) :].lower() or Path(name).suffix.lower()
        suffix = ".seg.nrrd" if name.lower().endswith(".seg.nrrd") else suffix
        if suffix == ".bin":  # OHIF sends the bare voxels
            source = await in_thread(store.opened, core, image)
            content, suffix = await in_thread(from_viewer, content, source), ".nrrd"
        elif suffix in LABEL_SUFFIXES and len(content) <= core.settings.limits.file_bytes:
            source = await in_thread(store.opened, core, image)
            await in_thread(check_label, content, suffix, source)
        info = parameters_of(params)
        known = {"label_info": info["label_info"]} if isinstance(info.get("label_info"), list) else {}
        if len(json.dumps(known)) > 20_000:
            raise Problem(413, "label_info holds at most 20000 characters", param="params")
        known = known or {"label_info": [{"name": n, "idx": i} for i, n in enumerate(tasks.names(store), 1)]}
        saved = await in_thread(store.put_label, image, tag, suffix, content, known)
        return {"image": saved, "label": saved}

    @router.get("/datastore/label", summary="The file of a label")
    async def get_label(label: str, tag: str = FINAL, who: str = Depends(owner)):
        path = stores.of(who).label(label, tag)
        return FileResponse(path, filename=path.name)

    @router.head("/datastore/label", summary="Whether a label is there")
    async def has_label(image: str = "", label: str = "", tag: str = FINAL, who: str = Depends(owner)):
        stores.of(who).label(image or label, tag)
        return Response()

    @router.delete("/datastore/label", summary="Delete a label")
    async def delete_label(id_: str = Query(alias="id"), tag: str = FINAL, who: str = Depends(owner)):
        await in_thread(stores.of(who).delete_label, id_, tag)
        return {}

    @router.get("/datastore/image/info", summary="What is known of an image")
    async def image_info(image: str, who: str = Depends(owner)):
        return stores.of(who).info(image)

    @router.get("/datastore/label/info", summary="What is known of a label")
    async def label_info(label: str, tag: str = FINAL, who: str = Depends(owner)):
        return stores.of(who).info(label, tag)

    @router.put("/datastore/image/info", summary="Add to what is known of an image")
    async def put_image_info(image: str, request: Request, info: str = Form("{}"), who: str = Depends(owner)):
        await in_thread(stores.of(who).note, image, parameters_of(info))
        return {}

    @router.put("/datastore/label/info", summary="Add to what is known of a label")
    async def put_label_info(label: str, tag: str = FINAL, info: str = Form("{}"), who: str = Depends(owner)):
        await in_thread(stores.of(who).note, label, parameters_of(info), tag)
        return {}

    @router.get("/datastore/dataset", summary="Images and their submitted labels as a ZIP archive")
    async def dataset(limit_cases: int = Query(0, ge=0), who: str = Depends(owner)):
        path = await in_thread(_archive, core, stores.of(who), limit_cases)
        return FileResponse(path, filename="dataset.zip", background=BackgroundTask(path.unlink, missing_ok=True))

    return router


def choose(store: Datastore, strategy: str) -> tuple[str | None, float]:
    """(image, weight) of the next image without a submitted label; (None, 0) when none is left.

    "uncertainty" takes the one that the model was least sure of when it drew it (`/infer`, `/batch/infer`); images that
    were not drawn yet count as half unsure.
    """
    left = store.unlabeled()
    if not left:
        return None, 0.0
    if strategy == "random":
        return random.choice(left), 1.0  # noqa: S311
    if strategy == "uncertainty":
        doubts = {name: float(store.info(name).get("uncertainty", 0.5)) for name in left}
        name = max(left, key=lambda name: doubts[name])
        return name, doubts[name]
    return left[0], 1.0


def _converted(core: Core, store: Datastore, name: str) -> tuple[str, bytes]:
    return image_file(store.opened(core, name))


def _checksum(core: Core, store: Datastore, name: str) -> tuple[str, str]:
    """(suffix, sha256) of what `/datastore/image` sends."""
    path = store.path(name)
    if path.is_file():
        with open(path, "rb") as stream:
            return path.name[len(without_suffix(path.name)) :], hashlib.file_digest(stream, "sha256").hexdigest()
    suffix, content = _converted(core, store, name)
    return suffix, hashlib.sha256(content).hexdigest()


def _archive(core: Core, store: Datastore, most: int) -> Path:
    folder = core.settings.state / "monai_label"
    with tempfile.NamedTemporaryFile(suffix=".zip", dir=folder, delete=False) as made:
        with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
            for number, (name, label) in enumerate(sorted(store.labels().items())):
                if most and number >= most:
                    break
                path = store.path(name)
                if path.is_file():
                    archive.write(path, f"{name}{path.name[len(without_suffix(path.name)) :]}")
                else:
                    suffix, content = _converted(core, store, name)
                    archive.writestr(f"{name}{suffix}", content)
                archive.write(label, f"labels/{FINAL}/{label.name}")
    return Path(made.name)


def _attached(content: bytes, name: str) -> Response:
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
    return Response(content, media_type="application/octet-stream", headers=headers)

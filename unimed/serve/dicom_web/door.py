"""The routes of DICOMweb, at `/dicomweb`, and where the OHIF of MONAI Label looks for them."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from unimed.io.dicom import open_dicom
from unimed.io.limits import ReadError, limited
from unimed.serve.access import owner
from unimed.serve.core import Core, in_thread
from unimed.serve.dicom_web.index import Index, Instance
from unimed.serve.dicom_web.pixels import frames_of, joined, numbers_of, parted, rendered
from unimed.serve.dicom_web.query import search
from unimed.serve.problems import Problem

PREFIXES = ("/dicomweb", "/proxy/dicom/qido", "/proxy/dicom/wado", "/proxy/dicom/stow")
_JSON = "application/dicom+json"
_INLINE = 64 * 1024
_SERIES = "/studies/{study}/series/{series}"
_SOP = _SERIES + "/instances/{sop}"


def dicom_web_door(core: Core, index: Index | None = None) -> APIRouter:
    """QIDO-RS, WADO-RS and STOW-RS over the server's root and what an owner stored.

    Args:
        index: shared with other doors; by default one of its own.
    """
    index = index or Index(core.settings.state / "dicom", core.settings.root)
    router = APIRouter(tags=["DICOMweb"])
    for prefix in PREFIXES:
        router.include_router(_routes(core, index, prefix), prefix=prefix, include_in_schema=prefix == PREFIXES[0])
    return router


def _routes(core: Core, index: Index, prefix: str) -> APIRouter:
    router = APIRouter()

    def base(request: Request) -> str:
        return f"{str(request.base_url).rstrip('/')}{prefix}"

    async def asked(level: str, request: Request, who: str, study: str = "", series: str = "") -> Response:
        try:
            found = await in_thread(index.chosen, who, study, series)
        except Problem:
            found = []
        pairs = list(request.query_params.multi_items())
        rows = await in_thread(search, level, found, pairs, base(request))
        return _told(rows) if rows else Response(status_code=204)

    @router.get("/studies", summary="QIDO-RS: search for studies")
    async def studies(request: Request, who: str = Depends(owner)):
        return await asked("studies", request, who)

    @router.get("/series", summary="QIDO-RS: search for series")
    async def all_series(request: Request, who: str = Depends(owner)):
        return await asked("series", request, who)

    @router.get("/instances", summary="QIDO-RS: search for instances")
    async def all_instances(request: Request, who: str = Depends(owner)):
        return await asked("instances", request, who)

    @router.get("/studies/{study}/series", summary="QIDO-RS: series of a study")
    async def series_of(study: str, request: Request, who: str = Depends(owner)):
        return await asked("series", request, who, study)

    @router.get("/studies/{study}/instances", summary="QIDO-RS: instances of a study")
    async def instances_of(study: str, request: Request, who: str = Depends(owner)):
        return await asked("instances", request, who, study)

    @router.get(_SERIES + "/instances", summary="QIDO-RS: instances of a series")
    async def instances_of_series(study: str, series: str, request: Request, who: str = Depends(owner)):
        return await asked("instances", request, who, study, series)

    # -- WADO-RS ------------------------------------------------------------------------------------------------
    async def metadata(request: Request, study: str, series: str = "", sop: str = "", who: str = Depends(owner)):
        found = await in_thread(index.chosen, who, study, series, sop)
        return _told(await in_thread(_metadata, found, base(request)))

    async def retrieve(study: str, series: str = "", sop: str = "", who: str = Depends(owner)):
        found = await in_thread(index.chosen, who, study, series, sop)
        boundary = secrets.token_hex(16)
        media = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return StreamingResponse(joined(_files(found), boundary), media_type=media)

    for path in ("/studies/{study}", _SERIES, _SOP):
        router.get(f"{path}/metadata", summary="WADO-RS: metadata")(metadata)
        router.get(path, summary="WADO-RS: the files")(retrieve)

    @router.get(_SOP + "/bulkdata/{tag}", summary="WADO-RS: a large value that the metadata leave out")
    async def bulk(study: str, series: str, sop: str, tag: str, who: str = Depends(owner)):
        (one,) = await in_thread(index.chosen, who, study, series, sop)
        try:
            element = one.header[int(tag, 16)]
        except (ValueError, KeyError) as error:
            raise Problem(404, "no such value", code="not_found") from error
        boundary = secrets.token_hex(16)
        media = f'multipart/related; type="application/octet-stream"; boundary={boundary}'
        content = element.value if isinstance(element.value, bytes) else str(element.value).encode()
        return StreamingResponse(joined(iter([("application/octet-stream", content)]), boundary), media_type=media)

    @router.get(_SOP + "/frames/{numbers}", summary="WADO-RS: frames, as stored where the caller takes that")
    async def frames(study: str, series: str, sop: str, numbers: str, request: Request, who: str = Depends(owner)):
        (one,) = await in_thread(index.chosen, who, study, series, sop)
        wanted = numbers_of(numbers, one.frames)
        accept = request.headers.get("accept", "")
        made, kind = await _within_limits(core, frames_of, one, wanted, accept)
        boundary = secrets.token_hex(16)
        media = f'multipart/related; type="{kind.split(";")[0]}"; boundary={boundary}'
        return StreamingResponse(joined(((kind, content) for content in made), boundary), media_type=media)

    async def rendered_image(
        study: str, series: str, sop: str, request: Request, number: str = "1", who: str = Depends(owner)
    ):
        (one,) = await in_thread(index.chosen, who, study, series, sop)
        (frame,) = numbers_of(number, one.frames)[:1]
        accept = request.headers.get("accept", "")
        kind = "image/png" if "image/png" in accept and "image/jpeg" not in accept else "image/jpeg"
        made = await _within_limits(core, rendered, one, frame, kind, dict(request.query_params))
        return Response(made, media_type=kind)

    router.get(_SOP + "/rendered", summary="WADO-RS: as a picture")(rendered_image)
    router.get(_SOP + "/thumbnail", summary="WADO-RS: as a picture")(rendered_image)
    router.get(_SOP + "/frames/{number}/rendered", summary="WADO-RS: a frame as a picture")(rendered_image)

    # -- STOW-RS ------------------------------------------------------------------------------------------------
    async def store(request: Request, study: str = "", who: str = Depends(owner)):
        kind = request.headers.get("content-type", "")
        contents = parted(await request.body(), kind)
        made, failed = await in_thread(_stored, core, index, who, study, contents, base(request))
        if not made.get("00081199", {}).get("Value"):
            return _told(made, 409)
        return _told(made, 202 if failed else 200)

    router.post("/studies", summary="STOW-RS: store objects")(store)
    router.post("/studies/{study}", summary="STOW-RS: store objects of one study")(store)
    return router


def _told(values, status: int = 200) -> JSONResponse:
    return JSONResponse(values, status, media_type=_JSON)


def _files(found: list[Instance]) -> Iterator[tuple[str, bytes]]:
    for one in found:
        syntax = one.header.file_meta.TransferSyntaxUID
        yield f"application/dicom; transfer-syntax={syntax}", one.path.read_bytes()


def _metadata(found: list[Instance], base: str) -> list[dict]:
    rows = []
    for one in found:
        url = f"{base}/studies/{one.study}/series/{one.series}/instances/{one.sop}"
        outer = {id(element) for element in one.header}

        def place(element, url=url, outer=outer) -> str:
            # Only values of the object itself have an address here; those within sequences are left out.
            return f"{url}/bulkdata/{int(element.tag):08X}" if id(element) in outer else ""

        row = one.header.to_json_dict(bulk_data_threshold=_INLINE, bulk_data_element_handler=place,
                                      suppress_invalid_tags=True)  # fmt: skip
        row.pop("7FE00010", None)
        rows.append(row)
    return rows


async def _within_limits(core: Core, work, *args):
    def run():
        with limited(core.settings.limits):
            return work(*args)

    try:
        return await in_thread(run)
    except ReadError as error:
        raise Problem(413 if "limit" in str(error) else 400, "the object cannot be decoded within the limits",
                      code="unreadable_image") from error  # fmt: skip


def _stored(core: Core, index: Index, who: str, study: str, contents: list[bytes], base: str) -> tuple[dict, int]:
    """What STOW answers, and how many objects failed (PS3.18 table 10.5.3-1, failure reasons PS3.4 annex GG)."""
    done, failed = [], []
    for content in contents:
        dataset = None
        try:
            with limited(core.settings.limits):
                dataset = open_dicom(io.BytesIO(content), pixels=False)
            if study and str(dataset.get("StudyInstanceUID", "")) != study:
                raise Problem(400, "an object of another study")
            one = index.add(who, dataset, content, core.settings.max_owner_bytes)
        except Exception as error:  # noqa: BLE001 - pydicom raises many kinds, and one object must not stop the others
            status = error.status if isinstance(error, Problem) else 0
            reason = {409: 0x0111, 413: 0xA700, 400: 0xA900}.get(status, 0xC000)
            failed.append(_reference(dataset) | {"00081197": {"vr": "US", "Value": [reason]}})
            continue
        url = f"{base}/studies/{one.study}/series/{one.series}/instances/{one.sop}"
        done.append(_reference(dataset) | {"00081190": {"vr": "UR", "Value": [url]}})
    made = {"00081199": {"vr": "SQ", "Value": done}} if done else {}
    if done and study:
        made["00081190"] = {"vr": "UR", "Value": [f"{base}/studies/{study}"]}
    if failed:
        made["00081198"] = {"vr": "SQ", "Value": failed}
    return made, len(failed)


def _reference(dataset) -> dict:
    if dataset is None:
        return {}
    return {"00081150": {"vr": "UI", "Value": [str(dataset.get("SOPClassUID", ""))]},
            "00081155": {"vr": "UI", "Value": [str(dataset.get("SOPInstanceUID", ""))]}}  # fmt: skip

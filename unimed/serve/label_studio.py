"""Label Studio's ML backend: its labels become questions, masks and boxes come back as its regions."""

from __future__ import annotations

import base64
import binascii
import os
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from unimed.chat import as_plain_text
from unimed.inference.asking import kind_of, worded
from unimed.io.annotations import label_studio_prediction
from unimed.io.findings import findings_of
from unimed.io.result import Prediction
from unimed.markup import plain_text
from unimed.serve.access import owner
from unimed.serve.chat import problem_of
from unimed.serve.core import Core, finish, in_thread
from unimed.serve.jobs import inside
from unimed.serve.messages import image_of_url
from unimed.serve.problems import Problem
from unimed.serve.settings import owner_of
from unimed.serve.work import Question
from unimed.structures import Region
from unimed.version import __version__

PREFIX = "/label-studio"
#: Access token of Label Studio, for the images of its own address.
TOKEN_VARIABLE = "UNIMED_LABEL_STUDIO_TOKEN"
_FETCH_S = 30.0
_MOST_TASKS = 64


class PredictRequest(BaseModel):
    """What Label Studio sends; the rest is ignored."""

    model_config = ConfigDict(extra="ignore")
    tasks: list[dict[str, Any]] = Field(max_length=_MOST_TASKS)
    label_config: str = Field("", max_length=100_000)
    params: dict[str, Any] | None = None


@dataclass
class Interface:
    """Tags of a labelling interface: names by kind, the labels of each, the image they label, and its key in a task."""

    tags: dict[str, str] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    image: str = "image"
    key: str = "image"

    def names(self) -> list[str]:
        """All labels of rectangles and brushes, in order."""
        kinds = ("BrushLabels", "RectangleLabels")
        return list(dict.fromkeys(name for kind in kinds for name in self.labels.get(kind, ())))

    def tag(self, kind: str, label: str) -> str | None:
        """The name of the tag of a kind that has a label."""
        return self.tags.get(kind) if label in self.labels.get(kind, ()) else None


def read_interface(text: str) -> Interface:
    """The tags that regions are drawn with.

    Raises:
        Problem: 400, no XML, or one with definitions of its own.
    """
    made = Interface()
    if not text.strip():
        return made
    if "<!" in text.replace("<!--", ""):  # entities can be written to grow without end
        raise Problem(400, "label_config holds definitions", param="label_config")
    try:
        root = xml.etree.ElementTree.fromstring(text)
    except xml.etree.ElementTree.ParseError as error:
        raise Problem(400, "label_config is no XML", param="label_config") from error
    for tag in root.iter():
        if tag.tag == "Image" and tag.get("value", "").startswith("$"):
            made.image, made.key = tag.get("name", "image"), tag.get("value")[1:]
        elif tag.tag in ("BrushLabels", "RectangleLabels", "KeyPointLabels") and tag.tag not in made.tags:
            made.tags[tag.tag] = tag.get("name", "")
            made.labels[tag.tag] = [label.get("value", "") for label in tag.iter("Label") if label.get("value")]
    return made


def label_studio_door(core: Core, address: str = "", model: str | None = None) -> APIRouter:
    """Connect `http://HOST:PORT/label-studio` as a model in Label Studio.

    Args:
        address: of Label Studio; images of its tasks are fetched from there and from nowhere else.
        model: name; by default the first.
    """
    router = APIRouter(prefix=PREFIX, tags=["Label Studio"])
    name = core.pool.name_of(model)
    version = {"model_version": f"{name} {__version__}"}

    @router.get("/", include_in_schema=False)
    @router.get("/health", summary="Alive")
    def health():
        return {"status": "UP", "model_class": "unimed"}

    @router.post("/setup", summary="Label Studio tells of a project; nothing is kept of it")
    def setup(who: str = Depends(_user)):
        return version

    @router.get("/versions", summary="Version of the model")
    def versions(who: str = Depends(_user)):
        return {"versions": [version["model_version"]]}

    @router.post("/webhook", status_code=201, summary="Nothing is done")
    @router.post("/train", status_code=201, summary="Nothing is done: train with `unimed train`")
    def nothing(who: str = Depends(_user)):
        return {}

    @router.post("/predict", summary="Regions of the labels, or of what was marked")
    async def predict(body: PredictRequest, request: Request, who: str = Depends(_user)):
        interface = read_interface(body.label_config)
        context = (body.params or {}).get("context") or {}
        context = (context.get("result") or []) if isinstance(context, dict) else context
        if not isinstance(context, list) or not all(isinstance(item, dict) for item in context):
            raise Problem(400, "params.context.result is no list of regions", param="params")
        results = []
        for task in body.tasks:
            source, digest = await in_thread(_open, core, who, name, task, interface, address)
            results.append(await _predicted(core, name, who, source, digest, interface, context, request))
        return {"results": results, **version}

    return router


def _user(request: Request) -> str:
    """The owner: by bearer token, or as user and password, which is how Label Studio logs in."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    core: Core = request.app.state.core
    if scheme.lower() == "basic" and core.settings.tokens:
        try:
            user, _, token = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            user, token = "", ""
        if user and owner_of(token, core.settings.tokens) == user:
            return user
    return owner(request)


def _open(core: Core, who: str, name: str, task: dict, interface: Interface, address: str):
    """(source, digest) of the image of a task.

    Raises:
        Problem: 400, no image that may be read.
    """
    url = (task.get("data") or {}).get(interface.key) if isinstance(task.get("data"), dict) else None
    if not isinstance(url, str) or not url:
        raise Problem(400, f"a task has no {interface.key!r} in its data", param="tasks")
    local = urllib.parse.urlsplit(url)
    if (
        local.path == "/data/local-files/"
        and not local.scheme
        and (path := urllib.parse.parse_qs(local.query).get("d"))
    ):
        place = inside(core.settings.root, path[0])
        return _kept(core, who, name, place.name, place.read_bytes())
    if url.startswith(("data:", "unimed://")):
        image = image_of_url(url, "tasks")
        if isinstance(image, str):
            stored = core.images.get(who, image)
            return core.open(stored, name), stored.digest
        return _kept(core, who, name, *image)
    return _kept(core, who, name, local.path.rsplit("/", 1)[-1] or "image", _fetched(core, url, address))


def _kept(core: Core, who: str, name: str, file: str, content: bytes):
    stored = core.images.put(who, [(file, content)])
    try:
        return core.open(stored, name), stored.digest
    finally:
        core.images.delete(who, stored.id)


def _fetched(core: Core, url: str, address: str) -> bytes:
    """An image of Label Studio's own address.

    Raises:
        Problem: 400, another address, a redirect, or nothing there; 413, too large.
    """
    base = urllib.parse.urlsplit(address)
    whole = urllib.parse.urlsplit(urllib.parse.urljoin(address, url) if address else url)
    if not address or (whole.scheme, whole.netloc) != (base.scheme, base.netloc):
        raise Problem(400, "images are data URLs, uploads, files below the root, or of the address that the server was "
                      "told (--label-studio)", param="tasks", code="invalid_image_url")  # fmt: skip
    token = os.environ.get(TOKEN_VARIABLE, "")
    asked = urllib.request.Request(whole.geturl(), headers={"Authorization": f"Token {token}"} if token else {})
    most = core.settings.limits.file_bytes
    try:
        with urllib.request.build_opener(_Straight).open(asked, timeout=_FETCH_S) as answer:  # noqa: S310
            content = answer.read(most + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Problem(400, "Label Studio gave no image", param="tasks", code="invalid_image_url") from error
    if len(content) > most:
        raise Problem(413, f"an image is larger than {most} bytes", param="tasks")
    return content


class _Straight(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to any address."""

    def redirect_request(self, *args, **kwargs):
        return None


async def _predicted(core: Core, name, who, source, digest, interface: Interface, context: list, request) -> dict:
    if source.is_volume:
        raise Problem(400, "Label Studio's regions are of images, not of volumes", param="tasks")
    model = await in_thread(core.pool.get, name)
    if kind_of(model) == "labels":
        raise Problem(400, "this model compares labels and draws nothing", param="tasks")
    size = source.content.rgb.shape[:2]
    marked = [found for item in context if (found := _marked(item, size)) is not None]
    made: dict[str, Any] = {"model_version": f"{name} {__version__}", "result": []}
    scores = []
    boxes = [(label, region) for label, region in marked if region.box_xyxy_px is not None]
    if boxes and hasattr(model, "segment_boxes"):
        prediction = await finish(core.call(name, lambda model: _in_boxes(model, source, boxes)), request)
        answers = [(label, _only(prediction, n)) for n, (label, _) in enumerate(boxes)]
    else:
        labels = list(dict.fromkeys(label for label, _ in marked)) or interface.names()
        if not labels:
            raise Problem(
                400, "the labelling interface has no BrushLabels and no RectangleLabels", param="label_config"
            )
        answers = []
        for label in labels[:64]:
            regions = tuple(region for other, region in marked if other == label)
            (text,) = worded(model, [as_plain_text(plain_text(label))])
            options = (("max_new_tokens", core.settings.max_new_tokens),)
            key = repr([(r.box_xyxy_px, None if r.mask is None else r.mask.tobytes()) for r in regions])
            question = Question(who, text, source, digest, regions=regions, regions_key=key, options=options)
            try:
                answers.append((label, (await finish(core.submit(name, question), request)).prediction))
            except Problem:
                raise
            except Exception as error:
                raise problem_of(error) from error
    for label, prediction in answers:
        tags = {"brush": interface.tag("BrushLabels", label), "rectangle": interface.tag("RectangleLabels", label)}
        present = [f for f in findings_of(prediction) if f.region.presence is None or f.region.presence >= 0.5]
        found = label_studio_prediction(prediction, present, size, to_name=interface.image, label=label, **tags)
        made["result"] += [item | {"id": f"u{len(made['result']) + n}"} for n, item in enumerate(found["result"])]
        scores += [found["score"]] if "score" in found else []
    return made | ({"score": float(np.mean(scores))} if scores else {})


def _in_boxes(model, source, boxes) -> Prediction:
    return model.segment_boxes(source.content, [r.box_xyxy_px for _, r in boxes], [label for label, _ in boxes])


def _only(prediction: Prediction, number: int) -> Prediction:
    from dataclasses import replace

    return replace(prediction, regions=prediction.regions[number : number + 1])


def _marked(item: dict, size: tuple[int, int]) -> tuple[str, Region] | None:
    """(label, region) of a rectangle or point that somebody drew; None for anything else.

    Raises:
        Problem: 400, numbers that are none.
    """
    kind, value = item.get("type"), item.get("value")
    if kind not in ("rectanglelabels", "keypointlabels") or not isinstance(value, dict):
        return None
    labels = value.get(kind)
    label = str(labels[0])[:500] if isinstance(labels, list) and labels else "region"
    height, width = size
    try:
        x, y = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height
        if kind == "rectanglelabels":
            box = (x, y, x + float(value["width"]) / 100 * width, y + float(value["height"]) / 100 * height)
            return label, Region(label, box_xyxy_px=box)
        rows, columns = np.ogrid[:height, :width]
        disc = (columns - x) ** 2 + (rows - y) ** 2 <= max(1.0, 0.01 * float(value.get("width", 1)) * width) ** 2
        if not disc.any():
            raise ValueError("the point lies outside")
        return label, Region(label, mask=disc)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Problem(400, f"a region of the context is none: {str(error)[:100]}", param="params") from error

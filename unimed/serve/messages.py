"""From the messages of a chat request to a question: text, turns before it, image, regions it speaks of."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unimed.chat import as_plain_text
from unimed.markup import plain_text
from unimed.serve.core import Core
from unimed.serve.problems import Problem
from unimed.serve.regions import named_regions
from unimed.serve.store import Stored

#: Media type of a data URL -> suffix of the file it becomes.
MEDIA = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/jpg": ".jpg", "image/tiff": ".tif", "image/bmp": ".bmp",
    "image/webp": ".webp", "image/gif": ".gif", "application/dicom": ".dcm", "application/nifti": ".nii.gz",
    "application/x-nifti": ".nii.gz",
}  # fmt: skip
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
_OWN_URL = re.compile(r"unimed://images/([0-9a-f]{32})")
_MOST_IMAGES = 16


class RegionFormat(BaseModel):
    """How regions are answered."""

    format: Literal["coco_rle", "none"] = "coco_rle"


class ChatRequest(BaseModel):
    """A request of `/v1/chat/completions`; what is not known is ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = None
    n: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    regions: RegionFormat = RegionFormat()
    site: str = Field("", max_length=64)
    modality: str = Field("", max_length=16)
    window: tuple[float, float] | None = None
    plane: Literal["axial", "coronal", "sagittal"] | None = None
    page: int | None = Field(None, ge=0)
    task: str | None = Field(None, max_length=32)
    #: As of vLLM: False gives the text with its markers and stop word.
    skip_special_tokens: bool = True
    #: As of vLLM: the ids of the answer as `token_ids` of the choice.
    return_token_ids: bool = False


@dataclass
class Asked:
    """What a request asks. `images` are ids of uploads and contents of data URLs, of the newest turn that shows any."""

    text: str
    history: tuple[tuple[str, str], ...] = ()
    images: list[str | tuple[str, bytes]] = field(default_factory=list)
    regions: list = field(default_factory=list)
    next_region: int = 1


def read_messages(request: ChatRequest, core: Core) -> Asked:
    """The question of a request.

    Raises:
        Problem: 400 for turns that do not alternate, contents nobody knows, or URLs that would have to be fetched.
    """
    settings = core.settings
    if len(request.messages) > settings.max_messages:
        raise Problem(400, f"{len(request.messages)} messages, at most {settings.max_messages}", param="messages")
    system, turns, images, earlier = [], [], [], []
    given: list = []
    for number, message in enumerate(request.messages):
        role = message.get("role")
        text, shown = _content(message.get("content"), number)
        regions = message.get("regions") or []
        if not isinstance(regions, list):
            raise Problem(400, f"messages[{number}].regions is not a list", param="messages")
        if role in ("system", "developer"):
            system.append(text)
        elif role == "user":
            if turns and turns[-1][0] == "user":  # two questions without an answer are one
                turns[-1] = ("user", f"{turns[-1][1]}\n{text}")
            else:
                turns.append(("user", text))
            given = regions
            images = shown or images
        elif role == "assistant":
            if not turns or turns[-1][0] != "user":
                raise Problem(400, f"messages[{number}]: an answer without a question before it", param="messages")
            turns.append(("assistant", text))
            earlier += regions
        else:
            raise Problem(400, f"messages[{number}]: role {str(role)[:40]!r} is not known", param="messages")
    if not turns or turns[-1][0] != "user":
        raise Problem(400, "the last message must be of the user", param="messages")
    if sum(len(text) for _, text in turns) + sum(map(len, system)) > settings.max_text:
        raise Problem(413, f"the messages hold more than {settings.max_text} characters", param="messages")
    if system and any(part.strip() for part in system):  # the template of the model has its own
        turns[0] = ("user", "\n".join([*(part for part in system if part.strip()), turns[0][1]]))
    text, wanted = named_regions(turns[-1][1], earlier, given)
    # Control strings of models, and of terminals and viewers, are plain text here.
    history = tuple((role, as_plain_text(plain_text(words)) or " ") for role, words in turns[:-1])
    text = as_plain_text(plain_text(text))
    if not text.strip():
        raise Problem(400, "the question is empty", param="messages")
    counts = [0, *(int(str(one.get("id"))[1:]) for one in earlier if _counted(one))]
    return Asked(text, history, images, wanted, max(counts) + 1)


def _counted(one) -> bool:
    return isinstance(one, dict) and re.fullmatch(r"r\d{1,6}", str(one.get("id"))) is not None


def _content(content, number: int) -> tuple[str, list]:
    """(text, images) of the content of one message."""
    where = f"messages[{number}].content"
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise Problem(400, f"{where} is neither text nor a list of parts", param="messages")
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            images.append(image_of_url(url, where))
        else:
            raise Problem(400, f"{where}: parts are of type text or image_url", param="messages")
    if len(images) > _MOST_IMAGES:
        raise Problem(400, f"{where}: {len(images)} images, at most {_MOST_IMAGES}", param="messages")
    return "\n".join(texts), images


def image_of_url(url, where: str) -> str | tuple[str, bytes]:
    """The id of an upload, or (name, content) of a data URL. Nothing is fetched from anywhere.

    Raises:
        Problem: 400, any other URL.
    """
    if isinstance(url, str):
        if own := _OWN_URL.fullmatch(url):
            return own[1]
        if found := _DATA_URL.match(url[:200]):
            suffix = MEDIA.get(found[1].lower())
            if suffix is None:
                raise Problem(400, f"{where}: media type {found[1][:60]!r}; known are {', '.join(MEDIA)}",
                              param="messages")  # fmt: skip
            try:
                content = base64.b64decode(url[found.end() :], validate=True)
            except (binascii.Error, ValueError) as error:
                raise Problem(400, f"{where}: the data URL is no base64", param="messages") from error
            if suffix == ".nii.gz" and content[:2] != b"\x1f\x8b":
                suffix = ".nii"
            return f"image{suffix}", content
    raise Problem(400, f"{where}: an image is a data URL (base64) or unimed://images/ID of an upload; "
                  "other addresses are not fetched", param="messages", code="invalid_image_url")  # fmt: skip


def opened(core: Core, who: str, asked: Asked, model: str, how: dict) -> tuple[Any, str]:
    """(source of a `Question`, digest of its content) of the images of a request.

    Images of data URLs are deleted as soon as they are read.
    """
    if not asked.images:
        return None, ""
    sources, digests = [], []
    for image in asked.images:
        if isinstance(image, str):
            with core.images.held(who, image) as stored:
                sources.append(core.open(stored, model, **how))
            digests.append(stored.digest)
        else:
            stored = core.images.put(who, [image])
            try:
                sources.append(core.open(stored, model, **how))
                digests.append(stored.digest)
            finally:
                _delete(core, who, stored)
    if len(sources) == 1:
        return sources[0], digests[0]
    if any(source.is_volume for source in sources):
        raise Problem(400, "a volume is asked about alone, without other images", param="messages")
    return [source.content for source in sources], "+".join(digests)


def _delete(core: Core, who: str, stored: Stored) -> None:
    try:
        core.images.delete(who, stored.id)
    except Problem:
        pass  # deleted meanwhile


def regions_key(regions: list) -> str:
    """Digest of regions that a question speaks of."""
    if not regions:
        return ""
    return hashlib.sha256(json.dumps(regions, sort_keys=True, default=str).encode()).hexdigest()

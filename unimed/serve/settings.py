"""What a server allows: folders, owners, sizes, times. Everything has a default that suits one machine."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unimed.files import read_lines
from unimed.io.limits import Limits

#: Owner of everything where no tokens are set: whoever reaches the loopback address.
LOCAL = "local"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class Settings:
    """Settings of `create_app`.

    Attributes:
        state: folder of uploads and jobs, readable by its owner alone; jobs found there go on.
        root: folder whose files jobs may name; None allows uploads only.
        tokens: sha256 (hex) of a bearer token -> owner; empty lets everybody in as `local`.
        hosts: names under which the server may be addressed, against DNS rebinding; ("*",) allows all.
        origins: web pages that may call from a browser (CORS); none by default.
        max_body_bytes, max_json_bytes: of an upload, and of any other request, which is held in memory.
        limits: of every image before it is decoded, see `unimed.io.limits`.
        max_owner_bytes: stored uploads of one owner. max_messages, max_text: of a chat, and characters in all.
        max_new_tokens: most an answer may have, and the default.
        max_in_flight: requests at work or waiting. max_queue: questions waiting for a model. max_jobs: unfinished jobs
            of one owner. max_batch: questions answered together.
        queue_timeout_s, request_timeout_s: waiting for the model, and in all. body_timeout_s, send_timeout_s: between
            two parts of a body, and for a reader to take a part.
        idle_image_s: uploads that nobody used for so long are deleted. idle_model_s: models are unloaded; 0 is never.
        idle_job_s: finished jobs that nobody asked for so long are deleted with their files.
        cache_bytes: opened images, answers, and embeddings of images, each; on the device of the model.
    """

    state: Path
    root: Path | None = None
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    hosts: tuple[str, ...] = (*LOOPBACK, "testserver")
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 512 * 2**20
    max_json_bytes: int = 64 * 2**20
    limits: Limits = field(default_factory=lambda: Limits(512 * 2**20, 2 * 2**30, 2**29))
    max_owner_bytes: int = 8 * 2**30
    max_messages: int = 64
    max_text: int = 100_000
    max_new_tokens: int = 512
    max_in_flight: int = 64
    max_queue: int = 32
    max_jobs: int = 100
    max_batch: int = 8
    queue_timeout_s: float = 120.0
    request_timeout_s: float = 600.0
    body_timeout_s: float = 30.0
    send_timeout_s: float = 60.0
    idle_image_s: float = 3600.0
    idle_model_s: float = 0.0
    idle_job_s: float = 7 * 24 * 3600.0
    cache_bytes: int = 256 * 2**20


def token_digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def owner_of(token: str | None, tokens: Mapping[str, str]) -> str | None:
    """The owner of a token; None where it is unknown. Every known token is compared, in constant time."""
    if not tokens:
        return LOCAL
    found, digest = None, token_digest(token or "")
    for known, owner in tokens.items():
        if hmac.compare_digest(known, digest):
            found = owner
    return found


def read_tokens(path: str | Path) -> dict[str, str]:
    """Tokens of a file with a line `OWNER TOKEN` each; lines that begin with # are comments.

    Raises:
        ValueError: another line, a token of fewer than 16 characters, or one of two owners.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if line.startswith("#"):
            continue
        owner, _, token = line.partition(" ")
        token = token.strip()
        if not token or len(token) < 16 or " " in token:
            raise ValueError(f"{path}: line {number} is not `OWNER TOKEN` with a token of 16 characters or more")
        if tokens.setdefault(token_digest(token), owner) != owner:
            raise ValueError(f"{path}: line {number} gives the token of another owner")
    if not tokens:
        raise ValueError(f"{path}: no token; write a line `OWNER TOKEN` per user")
    return tokens

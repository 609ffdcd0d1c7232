"""Around every request: how many at once, how large, how slow; and one line of log without what patients' files say."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from urllib.parse import urlsplit

from unimed.serve.core import LOG, Core
from unimed.serve.problems import Problem, busy


class JsonLines(logging.Formatter):
    """Log records as lines of JSON: time, level, what happened, and the record's `values`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        row = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower(),
               "event": record.getMessage(), **getattr(record, "values", {})}  # fmt: skip
        if record.exc_info:
            row["error"] = record.exc_info[0].__name__
        return json.dumps(row)


def log_to(stream) -> None:
    """Write the server's log as JSON lines to a stream, and uvicorn's: its tracebacks say what errors say of files."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for log, level in ((LOG, logging.INFO), (logging.getLogger("uvicorn.error"), logging.WARNING)):
        log.handlers[:] = [handler]
        log.setLevel(level)
        log.propagate = False


#: Answered also when the server is full: whoever watches it must see that.
ALWAYS = ("/healthz", "/metrics")
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


class Traffic:
    """ASGI middleware; see the module. Routes are logged by their template, so that no name or id of a file is."""

    def __init__(self, app, core: Core):
        self.app, self.core, self.count = app, core, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        settings, metrics = self.core.settings, self.core.metrics
        began, started, status = time.monotonic(), False, 500
        name = secrets.token_hex(8)
        read, headers = 0, dict(scope["headers"])
        multipart = headers.get(b"content-type", b"").lower().startswith((b"multipart/form-data", b"multipart/related"))
        most = settings.max_body_bytes if multipart else min(settings.max_json_bytes, settings.max_body_bytes)

        refusal: Problem | None = None

        async def sent(message):
            nonlocal started, status, refusal
            if refusal is not None:  # frameworks make an error of their own of what is raised while they read a body
                if not started:
                    problem, refusal = refusal, None
                    await _refuse(problem, sent)
                    refusal = problem
                return
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                more = [(b"x-request-id", name.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            try:
                await asyncio.wait_for(send(message), settings.send_timeout_s)
            except TimeoutError:
                metrics.refused.labels("slow reader").inc()
                raise _Dropped from None

        async def received():
            nonlocal read, refusal
            try:
                # After the body the application waits here to learn that the caller went away: that may take long.
                waits = None if read < 0 else settings.body_timeout_s
                message = await asyncio.wait_for(receive(), waits)
            except TimeoutError:
                metrics.refused.labels("slow body").inc()
                refusal = Problem(408, "the body came too slowly", code="timeout")
                raise refusal from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > most:
                    refusal = _too_large(most, metrics)
                    raise refusal
                if not message.get("more_body"):
                    read = -1
            return message

        self.count += 1
        metrics.in_flight.set(self.count)
        try:
            if self.count > settings.max_in_flight and scope["path"] not in ALWAYS:
                metrics.refused.labels("in flight").inc()
                raise busy(f"{self.count - 1} requests are at work; try again later", 1)
            if not settings.tokens and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                _refuse_other_pages(headers, settings.origins)
            declared = headers.get(b"content-length", b"0")
            if declared.isdigit() and int(declared) > most:
                raise _too_large(most, metrics)
            await self.app(scope, received, sent)
        except Problem as problem:
            refusal = None
            if not started:
                await _refuse(problem, sent)
        except _Dropped:
            status = 499
            # Raised on, so that the server closes the connection instead of keeping half an answer on it.
            raise ConnectionError("the reader was too slow") from None
        finally:
            self.count -= 1
            metrics.in_flight.set(self.count)
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "other")
            # Whatever a caller calls a method must not become a label of its own.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.requests.labels(method, route, str(status)).inc()
            metrics.seconds.labels(route).observe(seconds)
            values = {"request": name, "method": method, "route": route, "status": status,
                      "ms": round(1000 * seconds, 1)}  # fmt: skip
            LOG.info("request", extra={"values": values})


def _refuse_other_pages(headers: dict[bytes, bytes], allowed) -> None:
    """Without tokens a page of elsewhere, open in a browser of this machine, could send forms to the server.

    Raises:
        Problem: 403, the request says that it comes from another page than those of the server.
    """
    origin = headers.get(b"origin", b"").decode("latin-1")
    own = headers.get(b"host", b"").decode("latin-1")
    if origin and origin not in allowed and urlsplit(origin).netloc != own:
        raise Problem(403, "a page of another address may not ask (--origin allows it)", code="other_origin")


class _Dropped(Exception):
    pass


def _too_large(most: int, metrics) -> Problem:
    metrics.refused.labels("body").inc()
    return Problem(413, f"the body is larger than {most} bytes", code="too_large")


async def _refuse(problem: Problem, send) -> None:
    body = json.dumps(problem.to_dict()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close")]  # fmt: skip
    headers += [(key.lower().encode(), value.encode()) for key, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

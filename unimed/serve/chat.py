"""OpenAI's chat completions with `message.regions`, plain and streaming."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse

from unimed.serve.access import NOTICE, owner
from unimed.serve.core import LOG, Core, finish, in_thread, plain_problem
from unimed.serve.messages import Asked, ChatRequest, opened, read_messages, regions_key
from unimed.serve.pool import streams
from unimed.serve.problems import Problem
from unimed.serve.regions import region_of, regions_to_json
from unimed.serve.strict import Strict
from unimed.serve.work import Answer, Question


def chat_door(core: Core) -> APIRouter:
    """`/v1/chat/completions` and `/v1/models`."""
    router = APIRouter(prefix="/v1", tags=["chat"])

    @router.get("/models", summary="Models that can be asked")
    def models(who: str = Depends(owner)):
        return {"object": "list", "data": [_model(core, name) for name in core.pool.names]}

    @router.get("/models/{name}", summary="One model")
    def model(name: str, who: str = Depends(owner)):
        return _model(core, core.pool.name_of(name))

    @router.post("/chat/completions", summary="Ask about an image or volume; the answer has `message.regions`")
    async def completions(body: ChatRequest, request: Request, who: str = Depends(owner)):
        name = core.pool.name_of(body.model)
        if body.n not in (None, 1):
            raise Problem(400, "n must be 1: one answer per request", param="n")
        if body.tool_choice not in (None, "none", "auto"):
            raise Problem(400, "these models call no tools; leave tool_choice out", param="tool_choice")
        strict = Strict(body.response_format)
        asked = await in_thread(read_messages, body, core)
        question = await in_thread(_question, core, who, name, body, asked)
        reply = _Reply(core, name, body, asked, strict)
        if body.stream:
            return await reply.streaming(question)
        return JSONResponse(await reply.whole(question, request))

    return router


def _model(core: Core, name: str) -> dict:
    return {"id": name, "object": "model", "created": core.pool.created, "owned_by": "unimed"}


def _question(core: Core, who: str, name: str, body: ChatRequest, asked: Asked) -> Question:
    how = dict(site=body.site, modality=body.modality, window=body.window)
    page = {} if body.page is None else {"page": body.page}
    source, content = opened(core, who, asked, name, how | page)
    wanted = body.max_completion_tokens or body.max_tokens or core.settings.max_new_tokens
    options = {"max_new_tokens": min(wanted, core.settings.max_new_tokens)}
    if body.temperature:
        options["temperature"] = body.temperature
        if body.seed is not None:
            options["seed"] = body.seed
    if body.task:
        options["task"] = body.task
    return Question(
        who, asked.text, source, content + json.dumps(page), asked.history,
        tuple(region_of(one, "a region of the question") for one in asked.regions), regions_key(asked.regions),
        tuple(how.items()), tuple(options.items()), body.plane,
        tuple(line.strip() for line in asked.text.split("\n") if line.strip()),
    )  # fmt: skip


class _Reply:
    """The answer to one request, whole or in parts."""

    def __init__(self, core: Core, name: str, body: ChatRequest, asked: Asked, strict: Strict):
        self.core, self.name, self.body, self.asked, self.strict = core, name, body, asked, strict
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def whole(self, question: Question, request: Request) -> dict:
        ticket = self.core.submit(self.name, question)
        answer = await _finished(ticket, request)
        message, reason = await in_thread(self._message, answer)
        choice = {"index": 0, "finish_reason": reason, "logprobs": None, "message": message}
        choice |= {"token_ids": list(answer.ids)} if self.body.return_token_ids else {}
        return self._frame("chat.completion", [choice]) | {"usage": self._usage(answer), "notice": NOTICE}

    async def streaming(self, question: Question) -> StreamingResponse:
        """Refusals come as such, before the stream begins."""
        loop, parts = asyncio.get_running_loop(), asyncio.Queue()

        def watch(text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the server's loop has gone
                loop.call_soon_threadsafe(parts.put_nowait, text)

        ticket = self.core.submit(self.name, question, None if self.strict.asked else watch)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._parts(ticket, parts), media_type="text/event-stream", headers=headers)

    async def _parts(self, ticket, parts: asyncio.Queue):
        future = asyncio.wrap_future(ticket.future)

        def ended(done: asyncio.Future) -> None:
            if not done.cancelled():
                done.exception()  # looked at, also where the caller has gone
            parts.put_nowait(None)

        future.add_done_callback(ended)
        sent = ""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            while True:
                try:
                    text = await asyncio.wait_for(parts.get(), 10)
                except TimeoutError:
                    yield ": waiting\n\n"  # keeps proxies from closing the connection, and finds callers that went
                    continue
                if text is None:
                    break
                if len(text) > len(sent) and text.startswith(sent):
                    yield self._chunk({"content": text[len(sent) :]})
                    sent = text
            try:
                answer = future.result()
                message, reason = await in_thread(self._message, answer)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError | GeneratorExit):
                    raise
                yield f"data: {json.dumps(problem_of(error).to_dict())}\n\n"
                yield "data: [DONE]\n\n"
                return
            if message["content"].startswith(sent) and len(message["content"]) > len(sent):
                yield self._chunk({"content": message["content"][len(sent) :]})
            rest = {key: value for key, value in message.items() if key in ("regions", "classes", "notes") and value}
            yield self._chunk({"regions": []} | rest)
            yield self._chunk({}, reason)
            if (self.body.stream_options or {}).get("include_usage"):
                yield _event(self._frame("chat.completion.chunk", []) | {"usage": self._usage(answer)})
            yield "data: [DONE]\n\n"
        finally:
            ticket.cancel()

    def _message(self, answer: Answer) -> tuple[dict, str]:
        prediction = answer.prediction
        masks = self.body.regions.format == "coco_rle"
        regions = regions_to_json(prediction, masks=masks, first=self.asked.next_region)
        text = prediction.text if self.body.skip_special_tokens else prediction.markup or prediction.text
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": [],
                   "regions": regions}  # fmt: skip
        if prediction.classes is not None:
            message["classes"] = prediction.classes.to_dict()
        if notes := self._notes(prediction):
            message["notes"] = notes
        if self.strict.asked:
            message["content"] = self.strict.content(message)
        return message, "stop" if answer.finished else "length"

    def _notes(self, prediction) -> list[str]:
        model = self.core.pool.loaded(self.name)
        notes = list(prediction.image.steps) if prediction.image is not None else []
        if self.asked.history and (prediction.is_volume or model is not None and not streams(model)):
            notes.append("earlier turns were not read: the question was answered alone")
        return notes

    def _usage(self, answer: Answer) -> dict:
        model = self.core.pool.loaded(self.name)
        prompt = 0
        if model is not None and streams(model):
            words = [*(text for _, text in self.asked.history), self.asked.text]
            prompt = len(model.processor.tokenizer("\n".join(words))["input_ids"])
        return {"prompt_tokens": prompt, "completion_tokens": answer.tokens, "total_tokens": prompt + answer.tokens}

    def _frame(self, kind: str, choices: list) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name, "choices": choices}

    def _chunk(self, delta: dict, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._frame("chat.completion.chunk", [choice]))


def _event(values: dict) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"


async def _finished(ticket, request) -> Answer:
    try:
        return await finish(ticket, request)
    except Exception as error:
        raise problem_of(error) from error


def problem_of(error: BaseException) -> Problem:
    """What a caller is told of an error of a model: what is wrong with the question, and nothing of the server."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ValueError):
        return Problem(400, plain_problem(error), param="messages")
    LOG.error("failed", extra={"values": {"error": type(error).__name__}})
    return Problem(500, "the server failed on this question", kind="server_error", code=type(error).__name__)

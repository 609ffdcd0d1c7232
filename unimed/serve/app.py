"""The server: `create_app(pool, settings)` gives a FastAPI application with the core routes and the doors asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from unimed.serve.access import NOTICE, owner
from unimed.serve.core import LOG, Core, plain_problem
from unimed.serve.pool import ModelPool, describe
from unimed.serve.problems import Problem
from unimed.serve.settings import Settings
from unimed.serve.traffic import Traffic
from unimed.version import __version__

try:
    from fastapi import APIRouter, FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException as Refused
except ImportError as error:
    raise ImportError("the server needs fastapi: pip install 'unimed[serve]'") from error

#: A door: makes a router (or an ASGI application as (path, application)) of the core.
Door = Callable[[Core], object]


def create_app(pool: ModelPool, settings: Settings, doors: Sequence[Door] = (), *, usual: bool = True) -> FastAPI:
    """The application.

    Args:
        doors: further ones, see docs/serving.md: each is called with the `Core` and returns an `APIRouter`, a pair
            (path, ASGI application), a function that is given the application, or None.
        usual: also uploads, chat and jobs.
    """
    core = Core(pool, settings)

    @contextlib.asynccontextmanager
    async def life(app):
        from unimed.serve.core import in_thread

        core.start()
        if core.jobs is not None:
            core.jobs.start()
        try:
            yield
        finally:
            await in_thread(core.close)

    app = FastAPI(title="unimed", version=__version__, description=NOTICE, lifespan=life, docs_url=None, redoc_url=None)
    app.state.core = core
    _answers_to_errors(app)
    _core_routes(app, core)
    chosen = [*(_usual() if usual else ()), *doors]
    for door in chosen:
        made = door(core)
        if isinstance(made, tuple):
            app.mount(made[0], made[1])
        elif isinstance(made, APIRouter):
            app.include_router(made)
        elif made is not None:
            made(app)
    app.add_middleware(Traffic, core=core)
    if settings.origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"],
                           allow_headers=["*"])  # fmt: skip
    if "*" not in settings.hosts:
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)
    return app


def _usual() -> tuple[Door, ...]:
    from unimed.serve.chat import chat_door
    from unimed.serve.jobs_door import jobs_door
    from unimed.serve.uploads import uploads_door

    return uploads_door, chat_door, jobs_door


def _core_routes(app: FastAPI, core: Core) -> None:
    @app.get("/healthz", tags=["core"], summary="Alive, and whether new work is taken")
    def healthz():
        status = "closing" if core.closing else "ok"
        return JSONResponse({"status": status}, 503 if core.closing else 200)

    @app.get("/capabilities", tags=["core"], summary="Models, formats, limits, doors")
    def capabilities(request: Request):
        owner(request)
        from unimed.registry import WRITERS, registered

        settings = core.settings
        models = {
            name: {"loaded": core.pool.loaded(name) is not None}
            | ({} if core.pool.loaded(name) is None else describe(core.pool.loaded(name)))
            for name in core.pool.names
        }
        return {
            "name": "unimed", "version": __version__, "notice": NOTICE, "models": models,
            "formats": sorted(registered(WRITERS)),
            "limits": {
                "body_bytes": settings.max_body_bytes, "file_bytes": settings.limits.file_bytes,
                "decoded_bytes": settings.limits.decoded_bytes, "voxels": settings.limits.voxels,
                "owner_bytes": settings.max_owner_bytes, "new_tokens": settings.max_new_tokens,
                "queue": settings.max_queue, "batch": settings.max_batch,
                "request_timeout_s": settings.request_timeout_s, "idle_image_s": settings.idle_image_s,
            },
            "paths": settings.root is not None,
            "routes": sorted({path for path in request.app.openapi()["paths"]}),
        }  # fmt: skip

    @app.get("/metrics", tags=["core"], summary="Prometheus metrics")
    def metrics(request: Request):
        owner(request)
        content, kind = core.metrics.text()
        return Response(content, media_type=kind)


def _answers_to_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def refused(request: Request, problem: Problem):
        return JSONResponse(problem.to_dict(), problem.status, problem.headers)

    @app.exception_handler(Refused)  # also what is raised while a body is parsed
    async def plain(request: Request, error: Refused):
        return JSONResponse(Problem(error.status_code, str(error.detail)).to_dict(), error.status_code, error.headers)

    @app.exception_handler(404)
    async def nowhere(request: Request, error):
        detail = getattr(error, "detail", "Not Found")
        return JSONResponse(Problem(404, str(detail), code="not_found").to_dict(), 404)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
        message = f"{where or 'the body'}: {first.get('msg', 'invalid')}"
        if not where:  # curl sends a form where nobody says otherwise
            message += "; send JSON with the header Content-Type: application/json"
        problem = Problem(400, message[:500], param=where[:200] or None)
        return JSONResponse(problem.to_dict(), 400)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception):
        # What a model raises tells of the input, and our own errors are one sentence; tracebacks go to the log.
        if isinstance(error, ValueError) and type(error).__module__.split(".")[0] == "unimed":
            return JSONResponse(Problem(400, plain_problem(error)).to_dict(), 400)
        LOG.error("failed", extra={"values": {"error": type(error).__name__, "at": _place(error)}})
        problem = Problem(500, "the server failed on this request", kind="server_error", code=type(error).__name__)
        return JSONResponse(problem.to_dict(), 500)


def _place(error: BaseException) -> str:
    """Module and line where an error was raised; its text may hold what a patient file says."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_globals.get('__name__', '')}:{trace.tb_lineno}"

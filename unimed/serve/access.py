"""Who asks: the dependency of every route that is not public."""

from __future__ import annotations

try:
    from fastapi import Request
except ImportError as error:
    raise ImportError("the server needs fastapi: pip install 'unimed[serve]'") from error

from unimed.serve.core import Core
from unimed.serve.problems import Problem
from unimed.serve.settings import owner_of

NOTICE = "Research use only, not a medical device."


def owner(request: Request) -> str:
    """The owner behind a request: a dependency of every route that is not public.

    Raises:
        Problem: 401, no known bearer token.
    """
    core: Core = request.app.state.core
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    found = owner_of(token.strip() if scheme.lower() == "bearer" else None, core.settings.tokens)
    if found is None:
        core.metrics.refused.labels("token").inc()
        raise Problem(401, "give a known token: Authorization: Bearer TOKEN", kind="authentication_error",
                      code="invalid_api_key")  # fmt: skip
    return found

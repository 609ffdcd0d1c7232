"""Refusals of a server, in the form that OpenAI's clients read."""

from __future__ import annotations

from unimed.markup import plain_line


class Problem(Exception):
    """A refusal: HTTP status, one sentence for the caller, and what of the request it is about."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None, retry_after_s: float | None = None,
    ):  # fmt: skip
        message = plain_line(message)  # it may quote what a caller wrote
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = {} if retry_after_s is None else {"Retry-After": str(max(1, round(retry_after_s)))}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def to_dict(self) -> dict:
        """The body of the answer."""
        values = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": values}


def busy(message: str, retry_after_s: float) -> Problem:
    """429: try again in a while."""
    return Problem(429, message, kind="rate_limit_error", code="busy", retry_after_s=retry_after_s)


def missing(what: str, name: str = "") -> Problem:
    """404, also for what is there but belongs to somebody else: nobody learns that it exists."""
    return Problem(404, f"no such {what}" + (f": {name[:80]}" if name else ""), code="not_found")

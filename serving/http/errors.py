"""From error to status and words: the one table, and the one form of errors but in protocols that have their own."""

import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.errors import (
    BadRequest,
    DeadlineExceeded,
    EngineError,
    NotReady,
    QueueFull,
    Refused,
    TextError,
    TooManyTexts,
    UnknownModel,
    UnknownVersion,
)
from serving.http.foreign import foreign_status, form_of

STATUS: dict[type[Exception], int] = {
    UnknownModel: 404,
    UnknownVersion: 404,
    TooManyTexts: 413,
    BadRequest: 422,
    TextError: 422,
    Refused: 422,
    RequestValidationError: 422,
    QueueFull: 429,
    EngineError: 500,
    Exception: 500,
    NotReady: 503,
    DeadlineExceeded: 504,
}
"""From exception to status; what is not here comes with a status of its own (`HTTPException`)."""

TYPE = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    422: "invalid_request",
    429: "busy",
    500: "internal",
    503: "not_ready",
    504: "late",
}
"""From status to the word in `error.type`; other statuses are `bad_request`."""


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def message_of(error: Exception) -> str:
    """What the network is told of an error: of one inside only that its reason stands in the log."""
    if isinstance(error, HTTPException):
        return str(error.detail)
    if isinstance(error, RequestValidationError):
        return "; ".join(map(_explain, error.errors()))
    return "the server failed; its log says why" if status_of(error) == 500 else str(error)


def headers_of(error: Exception) -> Mapping[str, str] | None:
    """Headers that go with an error."""
    if isinstance(error, QueueFull):
        return {"retry-after": str(error.retry_after)}
    return error.headers if isinstance(error, HTTPException) else None


def error_response(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`{"error": {"type": …, "message": …}}`, or the form of the protocol that the path is of."""
    if form := form_of(path):
        return JSONResponse(form(status, message), foreign_status(status), headers)
    content = {"error": {"type": TYPE.get(status, "bad_request"), "message": message}}
    return JSONResponse(content, status, headers)


def _explain(fault: dict[str, Any]) -> str:
    if fault["type"] == "json_invalid":
        return f"the body must be JSON; {fault['ctx']['error']} at character {fault['loc'][-1]}"
    key = ".".join(map(str, fault["loc"][1:])) or "the body"
    # reprlib keeps a megabyte of wrong input, and what cannot be written as UTF-8, out of the answer.
    got = "" if fault["type"] == "missing" else f"; got {reprlib.repr(fault['input'])}"
    return f"{key}: {fault['msg']}{got}"

"""HTTP requests go in, JSON comes out: `create_app` makes the web application around a `Service`.

Every error, of whichever layer, leaves as `{"error": {"type": ..., "message": ...}}`.
"""

import logging
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.engines import EngineError
from serving.service import Service, TextError, TooManyTexts

STATUS: dict[type[Exception], int] = {
    TooManyTexts: 413,
    TextError: 422,
    RequestValidationError: 422,
    EngineError: 500,
    Exception: 500,
}
"""From exception to status; what is not here comes with a status of its own (`HTTPException`)."""

TYPE = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 422: "invalid_request", 500: "internal"}
"""From status to the word in `error.type`; other statuses are `bad_request`."""

log = logging.getLogger(__name__)


# One fault is enough to refuse a body that may hold a million: hence fail_fast, and no extra="forbid".
Texts = Annotated[list[str], Field(fail_fast=True)]


class ClassifyRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["A wonderful film."]}]})

    texts: Texts
    texts_b: Texts | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.keys() - cls.model_fields.keys():
            raise PydanticCustomError("unknown_key", "Only the keys texts and texts_b are known")
        return content


class Model(BaseModel):
    name: str
    version: str


class ClassifyResponse(BaseModel):
    """One result and one `truncated` a text (or pair); `truncated` says that the model read only a part of it.

    A result holds an answer by head. Classification says `label` and `probabilities`, multilabel `labels` and
    `probabilities`, regression `value`, tagging `spans` (each `type`, `start`, `end`, `text`, `score`; places count
    characters), vector `vector`, similarity `similarity` of a pair and `vector` of a text, and mlm `masks`: for each
    [MASK] in the text the best guesses (`token`, `probability`).
    """

    results: list[dict[str, dict[str, Any]]]
    truncated: list[bool]
    model: Model


class ErrorDetail(BaseModel):
    type: str
    message: str


class ErrorResponse(BaseModel):
    error: ErrorDetail


def create_app(service: Service, body_limit: int) -> FastAPI:
    """The application with `POST /classify`, `GET /livez` and `GET /readyz`; `body_limit` is in bytes."""
    model = Model(name=service.manifest.name, version=service.manifest.version)
    app = FastAPI(title=model.name, version=model.version)
    app.add_middleware(BodyLimit, limit=body_limit)
    for kind in (*STATUS, HTTPException):
        app.add_exception_handler(kind, _on_error)

    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (413, 422, 500)}

    @app.post("/classify", response_model=ClassifyResponse, responses=errors)
    async def classify(request: ClassifyRequest) -> dict[str, Any]:
        """What every head that reads texts says of every text; with texts_b, every head that reads pairs."""
        answers = await service.classify(request.texts, request.texts_b)
        return {"results": answers.results, "truncated": answers.truncated, "model": model}

    @app.get("/livez")
    async def livez() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @app.get("/readyz", responses={503: {}})
    async def readyz() -> JSONResponse:
        """The model answers; 503 where it does not."""
        ready = await service.is_ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    return app


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(error.status_code, message, error.headers)
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if isinstance(error, RequestValidationError):
        return error_response(status, "; ".join(map(_explain, error.errors())))
    if isinstance(error, EngineError):
        log.error("%s", error)
    # What went wrong inside is for the log (Starlette adds the traceback of any other exception), not for the network.
    return error_response(status, str(error) if status < 500 else "the server failed; its log says why")


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one form of every error."""
    content = {"error": {"type": TYPE.get(status, "bad_request"), "message": message}}
    return JSONResponse(content, status, headers)


def _explain(fault: dict[str, Any]) -> str:
    if fault["type"] == "json_invalid":
        return f"the body must be JSON; {fault['ctx']['error']} at character {fault['loc'][-1]}"
    key = ".".join(map(str, fault["loc"][1:])) or "the body"
    # reprlib keeps a megabyte of wrong input, and what cannot be written as UTF-8, out of the answer.
    got = "" if fault["type"] == "missing" else f"; got {reprlib.repr(fault['input'])}"
    return f"{key}: {fault['msg']}{got}"


class BodyLimit:
    """Reads a request's body before the application does, and answers 413 once it has more than `limit` bytes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = bytearray()
        size = _declared_size(scope["headers"])
        more = True
        while more and max(size, len(body)) <= self._limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if max(size, len(body)) > self._limit:
            refusal = error_response(413, f"the body must be at most {self._limit} bytes")
            return await refusal(scope, receive, send)
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)


def _declared_size(headers: Sequence[tuple[bytes, bytes]]) -> int:
    declared = dict(headers).get(b"content-length", b"0")
    return int(declared) if declared.isdigit() else 0

"""What the protocols of other servers share: bodies that are JSON whatever they say they are, and errors in each
protocol's own form."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute

Form = Callable[[int, str], dict[str, Any]]
"""From status and message to an error's JSON."""
OPENAI_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
OPENAI_KEY = re.compile(r"(model|input|encoding_format|dimensions|user)\b")
"""How messages about a key of the body begin."""


class JsonRoute(APIRoute):
    """Reads every body as JSON: the original servers ignore what its content type says, and `curl -d` says it is a
    form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def read(request: Request) -> Response:
            kept = [header for header in request.scope["headers"] if header[0] != b"content-type"]
            scope = {**request.scope, "headers": [*kept, (b"content-type", b"application/json")]}
            return await answer(Request(scope, request.receive))

        return read


def form_of(path: str) -> Form | None:
    """The form of errors of the protocol whose path that is; None where it is none of these."""
    return next((form for pattern, form in FORMS.items() if re.match(pattern, path)), None)


def foreign_status(status: int) -> int:
    """The status of these protocols: what is unprocessable here is a bad request there."""
    return 400 if status == 422 else status


def plain_form(status: int, message: str) -> dict[str, Any]:
    """TensorFlow Serving's and KServe's."""
    return {"error": message}


def openai_form(status: int, message: str) -> dict[str, Any]:
    """OpenAI's; https://developers.openai.com/api/docs/guides/error-codes."""
    key = OPENAI_KEY.match(message)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": key and key[0], "code": OPENAI_CODES.get(status)}}


FORMS: dict[str, Form] = {
    r"/v1/models/": plain_form,
    r"/v1(/|$)": openai_form,
    r"/v2(/|$)": plain_form,
}
"""By what a path begins with; the first that fits."""


def decimals(array: np.ndarray) -> list:
    """The numbers as nested lists, each with no more digits than its float32 has: 0.1, not 0.10000000149011612."""
    return array.astype(np.float32).astype(str).astype(np.float64).tolist()

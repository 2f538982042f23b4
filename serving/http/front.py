"""What every HTTP request passes before a protocol reads it: its id, key, size and the queue's room; and the log."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import QueueFull
from serving.http.errors import error_response, headers_of
from serving.keys import Keys
from serving.logs import request_id as current_id

OPEN = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
"""Paths of probes, which need no key."""
PAGE = ("/", "/web/")
"""The page and the files below, which need none either."""
ID = b"x-request-id"

log = logging.getLogger("serving.access")


class Front:
    """An ASGI middleware.

    Args:
        body_limit: bytes of a request's body.
        full: raises `QueueFull` where a request that asks the model can only be refused.
    """

    def __init__(self, app: ASGIApp, keys: Keys, body_limit: int, full: Callable[[], None]) -> None:
        self._app, self._keys, self._limit, self._full = app, keys, body_limit, full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 0
        headers = dict(scope["headers"])
        # One that was given must be printable and short, as it goes into logs.
        given = headers.get(ID, b"")[:64]
        request_id = (
            given if given and given.isascii() and given.decode().isprintable() else secrets.token_hex(8).encode()
        )
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        current_id.set(request_id.decode())

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (ID, request_id)]
            await send(message)

        try:
            await self._pass(scope, headers, receive, answer)
        finally:
            log.info(
                "%s %s", scope["method"], scope["path"],
                extra={
                    "request_id": request_id.decode(), "status": status or 499,
                    "milliseconds": round(1000 * (time.perf_counter() - began), 2),
                },
            )  # fmt: skip

    async def _pass(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        path = scope["path"]
        public = path in OPEN or path == PAGE[0] or path.startswith(PAGE[1])
        if not public and not self._keys.admit(headers.get(b"authorization", b"").decode("latin-1")):
            refusal = error_response(
                path, 401, "a key must be given: authorization: Bearer …", {"www-authenticate": "Bearer"}
            )
            return await refusal(scope, receive, send)
        if scope["method"] == "POST":
            try:
                self._full()
            except QueueFull as error:
                return await error_response(path, 429, str(error), headers_of(error))(scope, receive, send)
        declared = headers.get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else 0
        body = b"" if size > self._limit else await self._body(receive)
        if body is None:
            return
        if max(size, len(body)) > self._limit:
            refusal = error_response(path, 413, f"the body must be at most {self._limit} bytes")
            return await refusal(scope, receive, send)
        await _until_gone(self._app, scope, body, receive, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, of which no more than the limit and a piece is read; None where the client goes."""
        body, more = bytearray(), True
        while more and len(body) <= self._limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)


async def _until_gone(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Lets the application answer, and ends it where the client does not wait for that."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def replay() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if not answered:
            task.cancel()

    answered = False

    async def answer(message: Message) -> None:
        nonlocal answered
        answered = True
        await send(message)

    task = asyncio.ensure_future(app(scope, replay, answer))
    watching = asyncio.create_task(watch())
    try:
        await task
    except asyncio.CancelledError:
        if not gone.is_set():  # the server's own end
            task.cancel()
            raise
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

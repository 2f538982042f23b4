"""Both clients against a real HTTP server that answers, or fails, as each test tells it to."""

import asyncio
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving import AsyncClient, Client, ClientError, calls

ANSWER = {"results": [{"imdb": {"label": "pos"}}], "truncated": [False], "model": {"name": "m", "version": "1"}}


class Told:
    """The answers to come, each a response; after the last one `ANSWER`. `asked` holds path, headers and content."""

    def __init__(self, address: str):
        self.address, self.answers, self.asked = address, [], []

    async def answer(self, request: Request) -> Response:
        self.asked.append((request.url.path, request.headers, await request.json()))
        return self.answers.pop(0) if self.answers else JSONResponse(ANSWER)


@pytest.fixture(scope="module")
def server() -> Iterator[Told]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told = Told(f"http://127.0.0.1:{listener.getsockname()[1]}")
        app = Starlette(routes=[Route("/{path:path}", told.answer, methods=["POST"])])
        running = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical", timeout_keep_alive=60))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield told
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def told(server: Told, monkeypatch) -> Told:
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.04)
    server.answers, server.asked = [], []
    return server


def ask_sync(address, method="classify", *args, timeout=5.0, key=None, retries=3, **chosen):
    with Client(address, timeout, key=key, retries=retries) as client:
        return getattr(client, method)(*(args or [["good"]]), **chosen)


def ask_async(address, method="classify", *args, timeout=5.0, key=None, retries=3, **chosen):
    async def ask():
        async with AsyncClient(address, timeout, key=key, retries=retries) as client:
            return await getattr(client, method)(*(args or [["good"]]), **chosen)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_sync, ask_async])
def ask(request):
    return request.param


def error(status: int, **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"type": "t", "message": "not now"}}, status, headers)


def test_each_method_sends_its_texts_and_reads_its_answer(told, ask):
    told.answers = [
        JSONResponse(ANSWER),
        JSONResponse({"vectors": [[0.5, 1.0], [2.0, 3.0]], "truncated": [False, False], "model": {}}),
        JSONResponse({"tokens": [{"ids": [2, 6, 3], "tokens": ["[CLS]", "good", "[SEP]"], "truncated": False}]}),
    ]
    assert ask(told.address + "/", "classify", iter(["good"]), texts_b=["bad"]) == [{"imdb": {"label": "pos"}}]
    vectors = ask(told.address, "encode", ["a", "b"], pooling="mean", layers=(-1, 2))
    assert [v.dtype for v in vectors] == [np.float32] * 2 and np.array_equal(vectors, [[0.5, 1], [2, 3]])
    assert ask(told.address, "tokenize", ["good"])[0]["ids"] == [2, 6, 3]
    assert [(path, content) for path, _, content in told.asked] == [
        ("/classify", {"texts": ["good"], "texts_b": ["bad"]}),
        ("/encode", {"texts": ["a", "b"], "pooling": "mean", "layers": [-1, 2]}),
        ("/tokenize", {"texts": ["good"]}),
    ]


def test_a_bare_text_is_refused_before_it_is_sent(told, ask):
    for method in ("classify", "encode", "tokenize"):
        with pytest.raises(TypeError, match="must be lists of texts; got one text"):
            ask(told.address, method, "good")
    assert told.asked == []


def test_cut_texts_are_warned_of_where_the_method_was_called(told, ask):
    told.answers = [JSONResponse(ANSWER | {"truncated": [True]})]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ask(told.address)
    (warning,) = (each for each in caught if each.category is UserWarning)
    assert (str(warning.message), warning.filename) == ("1 of 1 texts are longer than the model reads", __file__)


def test_the_key_is_a_bearer_token_from_the_argument_or_the_environment(told, ask, monkeypatch):
    monkeypatch.setenv("BERT_MTL_KEY", "from-environment")
    ask(told.address)
    ask(told.address, key="given")
    monkeypatch.delenv("BERT_MTL_KEY")
    ask(told.address)
    sent = [headers.get("authorization") for _, headers, _ in told.asked]
    assert sent == ["Bearer from-environment", "Bearer given", None]


def test_a_key_with_a_line_end_is_refused_without_being_shown(told, ask):
    with pytest.raises(ValueError, match=r"^key \(or .* BERT_MTL_KEY\) must be printable ASCII$"):
        ask(told.address, key="secret\n")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_may_answer_later_is_asked_again(told, ask, status):
    told.answers = [error(status), error(status)]
    start = time.monotonic()
    assert ask(told.address) == ANSWER["results"]
    assert len(told.asked) == 3
    assert 0.02 + 0.04 <= time.monotonic() - start < 0.06 + 0.12 + 0.3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500])
def test_a_refusal_is_final_and_told_with_its_status(told, ask, status):
    told.answers = [error(status)]
    with pytest.raises(ClientError, match=rf"^{told.address}/classify answered {status}: not now$") as caught:
        ask(told.address)
    assert (caught.value.status, len(told.asked)) == (status, 1)


def test_the_tries_are_bounded_and_counted(told, ask):
    told.answers = [error(503)] * 9
    with pytest.raises(ClientError, match=r"answered 503: not now \(tried 2 times\)$") as caught:
        ask(told.address, retries=1)
    assert (caught.value.status, len(told.asked)) == (503, 2)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(told, ask, as_date):
    # A date counts whole seconds: this one is between one and two from now.
    after = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if as_date else "1"
    told.answers = [error(429, **{"retry-after": after})]
    start = time.monotonic()
    ask(told.address)
    assert 0.9 <= time.monotonic() - start < 2.7
    assert len(told.asked) == 2


def test_a_wait_longer_than_the_timeout_is_not_begun(told, ask):
    told.answers = [error(429, **{"retry-after": "60"})]
    start = time.monotonic()
    with pytest.raises(ClientError, match="answered 429: not now$"):
        ask(told.address)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("value", ["soon", "-1", "²"])
def test_a_retry_after_that_says_nothing_is_passed_over(told, ask, value):
    told.answers = [error(429, **{"retry-after": value})]
    assert ask(told.address) == ANSWER["results"]


def test_a_dripping_answer_ends_with_the_timeout(told, ask):
    async def drip():
        for _ in range(30):
            yield b" "
            await asyncio.sleep(0.1)

    told.answers = [StreamingResponse(drip())]
    start = time.monotonic()
    with pytest.raises(ClientError, match=r"/classify did not answer within 0.5 s$") as caught:
        ask(told.address, timeout=0.5)
    assert 0.4 < time.monotonic() - start < 2.5 and caught.value.status is None


def test_retries_end_with_the_timeout_as_a_whole(told, ask):
    told.answers = [error(503)] * 99
    start = time.monotonic()
    with pytest.raises(ClientError, match="answered 503|did not answer"):
        ask(told.address, timeout=0.5, retries=99)
    assert time.monotonic() - start < 10 and 2 <= len(told.asked) <= 6


@pytest.mark.parametrize("speaks", [False, True])
def test_a_connection_that_fails_at_first_is_tried_again(told, ask, speaks):
    """It is closed: at once, or after the request was read."""

    def fail_once(listener):
        connection, _ = listener.accept()
        if speaks:
            connection.recv(65536)
        connection.close()
        listener.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=fail_once, args=[listener])
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(
            ClientError, match=rf"^{address}/classify cannot be reached: .* \(tried 3 times\)$"
        ) as caught:
            ask(address, retries=2)
        thread.join()
    assert caught.value.status is None


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "127.0.0.1:80"])
def test_an_address_that_is_none_is_told_at_once(ask, address):
    start = time.monotonic()
    with pytest.raises(ClientError, match="cannot be reached: "):
        ask(address)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"results": []}', b"\xff", b'{"truncated": 1}'])
def test_an_answer_of_another_server_is_an_error_that_shows_it(told, ask, body):
    told.answers = [Response(body)]
    with pytest.raises(ClientError, match="/classify answered 200: ") as caught:
        ask(told.address)
    assert body.decode(errors="replace") in str(caught.value)


def test_text_that_is_no_unicode_is_the_servers_to_refuse(told, ask):
    ask(told.address, "classify", ["\ud800"])
    assert told.asked[0][2] == {"texts": ["\ud800"]}

"""Texts go to a server, answers come back: `Client("http://127.0.0.1:8000").classify(["A wonderful film."])`.

`AsyncClient` has the same methods, to be awaited. What both send, read, and do about failures is in `serving.calls`.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from serving.calls import (
    Call,
    ClientError,
    Exchange,
    Line,
    Outcome,
    Received,
    classify_call,
    encode_call,
    tokenize_call,
)

__all__ = ["AsyncClient", "Client", "ClientError"]


class Client:
    """Asks one server; usable as a context manager, and from several threads.

    Args:
        address: such as `http://127.0.0.1:8000`.
        timeout: seconds an answer may take, with all its retries.
        key: the server's API key, sent as a bearer token; the environment variable `BERT_MTL_KEY` where None.
        retries: how often a request is sent again after a connection error or the statuses 429, 502, 503 and 504:
            after 0.2 s, then twice as long each time, give or take, or when the server's `Retry-After` says.

    Its methods raise `ClientError`, and TypeError for one bare text.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        timeout: float = 30.0,
        *,
        key: str | None = None,
        retries: int = 3,
    ) -> None:
        self._line = Line(address, timeout, key, retries)
        self._http = httpx.Client(headers=self._line.headers)

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._line.address

    def classify(self, texts: Iterable[str], texts_b: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """For each text (or pair) an answer by head, `{"label": str, "probabilities": {label: float}}` or what its kind
        says, in the order of the texts. Warns where the model read only a part of a text."""
        return self._ask(classify_call(texts, texts_b))

    def encode(
        self,
        texts: Iterable[str],
        texts_b: Iterable[str] | None = None,
        *,
        pooling: str | None = None,
        layers: Sequence[int] | None = None,
    ) -> list[np.ndarray]:
        """For each text (or pair) a float32 vector `(dim,)`; with pooling `none` one a token, `(length, dim)`.

        `pooling` and `layers` (0 the embeddings, -1 the last; several stand side by side) are the server's where None.
        Warns where the model read only a part of a text.
        """
        return self._ask(encode_call(texts, texts_b, pooling, layers))

    def tokenize(self, texts: Iterable[str]) -> list[dict[str, Any]]:
        """What the model reads of each text: `{"ids": [int], "tokens": [str], "truncated": bool}`."""
        return self._ask(tokenize_call(texts))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, call: Call) -> Any:
        exchange = Exchange(self._line, call)
        while not exchange.over:
            time.sleep(exchange.pause)
            exchange.note(self._outcome(exchange))
        return exchange.answer()

    def _outcome(self, exchange: Exchange) -> Outcome:
        try:
            # httpx's timeout is one of each read: an answer of many small parts could take any time.
            with self._http.stream("POST", exchange.url, content=exchange.body, timeout=exchange.left()) as response:
                body = b"".join(exchange.in_time(response.iter_bytes()))
                return Received(response.status_code, response.headers, body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error


class AsyncClient:
    """As `Client`, its methods awaited, usable as an asynchronous context manager. Belongs to one event loop."""

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        timeout: float = 30.0,
        *,
        key: str | None = None,
        retries: int = 3,
    ) -> None:
        self._line = Line(address, timeout, key, retries)
        self._http = httpx.AsyncClient(headers=self._line.headers)

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._line.address

    async def classify(self, texts: Iterable[str], texts_b: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """As `Client.classify`."""
        return await self._ask(classify_call(texts, texts_b))

    async def encode(
        self,
        texts: Iterable[str],
        texts_b: Iterable[str] | None = None,
        *,
        pooling: str | None = None,
        layers: Sequence[int] | None = None,
    ) -> list[np.ndarray]:
        """As `Client.encode`."""
        return await self._ask(encode_call(texts, texts_b, pooling, layers))

    async def tokenize(self, texts: Iterable[str]) -> list[dict[str, Any]]:
        """As `Client.tokenize`."""
        return await self._ask(tokenize_call(texts))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _ask(self, call: Call) -> Any:
        exchange = Exchange(self._line, call)
        while not exchange.over:
            await asyncio.sleep(exchange.pause)
            exchange.note(await self._outcome(exchange))
        return exchange.answer()

    async def _outcome(self, exchange: Exchange) -> Outcome:
        try:
            async with asyncio.timeout(exchange.left()):
                response = await self._http.post(exchange.url, content=exchange.body, timeout=None)
                return Received(response.status_code, response.headers, response.content)
        except TimeoutError:
            return httpx.ReadTimeout("")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error

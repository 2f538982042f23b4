"""What the clients say to a server and how they take its answers: all of it that does no input or output.

A `Call` is sent as an `Exchange`: attempts until one is answered, or the tries or the time are used up.
"""

import json
import os
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx
import numpy as np

KEY_VARIABLE = "BERT_MTL_KEY"
AGAIN = (429, 502, 503, 504)  # statuses of a server that may answer the same request later
FIRST_PAUSE = 0.2  # seconds


class ClientError(Exception):
    """The server could not be reached or refused the request; the message holds its address and says why.

    `status` is the HTTP status of the answer, None where there was none.
    """

    user_error = True

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Call(NamedTuple):
    """A request's path and JSON content, and how its answer is read."""

    path: str
    content: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]


def classify_call(texts: Iterable[str], texts_b: Iterable[str] | None) -> Call:
    return Call("/classify", _texts(texts, texts_b), lambda answer: _whole(answer)["results"])


def encode_call(
    texts: Iterable[str], texts_b: Iterable[str] | None, pooling: str | None, layers: Sequence[int] | None
) -> Call:
    chosen = {"pooling": pooling, "layers": None if layers is None else list(layers)}
    content = _texts(texts, texts_b) | {key: value for key, value in chosen.items() if value is not None}
    return Call("/encode", content, lambda answer: [np.array(v, np.float32) for v in _whole(answer)["vectors"]])


def tokenize_call(texts: Iterable[str]) -> Call:
    return Call("/tokenize", _texts(texts, None), lambda answer: answer["tokens"])


def _texts(texts: Iterable[str], texts_b: Iterable[str] | None) -> dict[str, Any]:
    if isinstance(texts, str) or isinstance(texts_b, str):
        raise TypeError("texts and texts_b must be lists of texts; got one text")
    return {"texts": list(texts)} | ({} if texts_b is None else {"texts_b": list(texts_b)})


def _whole(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, after a warning where the model read only a part of a text."""
    if cut := sum(answer["truncated"]):
        message = f"{cut} of {len(answer['truncated'])} texts are longer than the model reads"
        warnings.warn(message, stacklevel=6)  # the line that called the client's method
    return answer


class Line:
    """One server: its address, the headers of requests, and the limits of time and tries."""

    def __init__(self, address: str, timeout: float, key: str | None, retries: int) -> None:
        self.address = address.rstrip("/")
        self.timeout = timeout
        self.retries = retries
        self.headers = {"content-type": "application/json"}
        if key := (os.environ.get(KEY_VARIABLE) if key is None else key):
            if not (key.isascii() and key.isprintable()):
                raise ValueError(f"key (or the environment variable {KEY_VARIABLE}) must be printable ASCII")
            self.headers["authorization"] = f"Bearer {key}"


class Received(NamedTuple):
    """An answer of the server, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Outcome = Received | httpx.HTTPError | httpx.InvalidURL
"""What became of one attempt."""


@dataclass
class Exchange:
    """The attempts at one call: wait `pause` seconds, send `body` to `url`, `note` the outcome, until it is `over`."""

    line: Line
    call: Call
    pause: float = 0.0
    over: bool = False
    tries: int = 0
    outcome: Outcome | None = None
    deadline: float = field(init=False)
    body: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.line.timeout
        self.body = json.dumps(self.call.content).encode()  # escaped, so that lone surrogates too reach the server

    @property
    def url(self) -> str:
        return self.line.address + self.call.path

    def left(self) -> float:
        """Seconds that remain for an attempt; none of it would mean for ever to httpx."""
        return max(self.deadline - time.monotonic(), 1e-3)

    def in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks of an answer; raises ReadTimeout once the time is used up, as httpx does of a single chunk."""
        for chunk in chunks:
            if time.monotonic() > self.deadline:
                raise httpx.ReadTimeout("")
            yield chunk

    def note(self, outcome: Outcome) -> None:
        """Says whether and when to try again."""
        self.outcome = outcome
        self.tries += 1
        pause = FIRST_PAUSE * 2 ** (self.tries - 1)
        if isinstance(outcome, Received):
            worth = outcome.status in AGAIN
            asked = _retry_after(outcome.headers)
        else:
            worth = isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError)
            asked = None
        # Clients that failed together shall not come back together.
        self.pause = pause * random.uniform(0.5, 1.5) if asked is None else asked + random.uniform(0, pause)
        in_time = time.monotonic() + self.pause < self.deadline
        self.over = not (worth and in_time and self.tries <= self.line.retries)

    def answer(self) -> Any:
        """What the call reads from the last outcome; raises ClientError where that is a failure."""
        again = f" (tried {self.tries} times)" if self.tries > 1 else ""
        if isinstance(self.outcome, httpx.TimeoutException):
            raise ClientError(f"{self.url} did not answer within {self.line.timeout:g} s{again}")
        if not isinstance(self.outcome, Received):
            raise ClientError(f"{self.url} cannot be reached: {self.outcome}{again}") from self.outcome
        status, _, body = self.outcome
        try:
            answer = json.loads(body)
            if 200 <= status < 300:
                return self.call.read(answer)
            reason = answer["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = body.decode(errors="replace")[:200]
        raise ClientError(f"{self.url} answered {status}: {reason}{again}", status)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After`, which may also be a date; None where there is none."""
    value = headers.get("retry-after", "")
    try:
        if value.isdecimal():
            return float(value)
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None

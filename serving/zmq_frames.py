"""bert-as-service's messages (version 1.10.0): frames of bytes in and out, as pure functions.

A request is `identity, content, request id, count`; content is a JSON list of texts (or of lists of tokens) or a
command. A reply is `identity, JSON {dtype, shape, tokens}, numbers, request id`, of a command `identity, JSON,
request id`. The functions here leave out the identity of replies, which `serving.zmq_outbox` writes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.errors import DeadlineExceeded, NotReady, QueueFull, Refused, ServingError, TextError, TooManyTexts

SHOW_CONFIG, SHOW_STATUS, TERMINATION = COMMANDS = (b"SHOW_CONFIG", b"SHOW_STATUS", b"TERMINATION")
NUMBER = re.compile(rb"[0-9]{1,18}")
MESSAGE = 500
"""Characters of an error's message at most."""
Buffer = bytes | memoryview
Texts = list[str] | list[list[str]]
Pair = tuple[str, str | None] | tuple[list[str], list[str] | None]

TYPES: dict[type[Exception], str] = {
    TooManyTexts: "too_large",
    QueueFull: "busy",
    NotReady: "not_ready",
    DeadlineExceeded: "timeout",
}
"""From exception to the word in `error.type`; other refusals are `invalid_request`."""


class MalformedRequest(ServingError):
    """Frames that are no request; the message says what a request is."""


class ReplyTooLarge(TooManyTexts):
    """The numbers of one reply are more than the server sends."""


@dataclass(frozen=True)
class Request:
    """The frames of a request, of which `content` is not read yet."""

    identity: bytes
    content: bytes
    id: bytes
    count: int


def parse(frames: Sequence[bytes], limit: int) -> Request:
    """The request of these frames; raises `MalformedRequest`. `limit` is in bytes, of `content`."""
    if len(frames) != 4:
        raise MalformedRequest(f"a request must have 4 frames: identity, texts, request id, count; got {len(frames)}")
    identity, content, request_id, count = frames
    for name, frame in {"request id": request_id, "count": count}.items():
        if not NUMBER.fullmatch(frame):
            raise MalformedRequest(f"the {name} must be a whole number; got {frame[:20]!r}")
    if len(content) > limit:
        raise MalformedRequest(f"the texts must have at most {limit} bytes as JSON; got {len(content)}")
    return Request(identity, content, request_id, int(count))


def request_id(frames: Sequence[bytes]) -> bytes:
    """What to answer by, of frames that may be no request; 0 where they say nothing usable."""
    return frames[2] if len(frames) > 2 and NUMBER.fullmatch(frames[2]) else b"0"


def read_texts(content: bytes, count: int) -> Texts:
    """Texts, or texts as lists of tokens; raises `MalformedRequest` for anything else."""
    try:
        texts = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, an endless number
        fault = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise MalformedRequest(f"the texts must be a JSON list, or a command; {fault}") from None
    if not isinstance(texts, list) or not texts:
        raise MalformedRequest(f"the texts must be a JSON list with at least one text; got {_name(texts)}")
    if len(texts) != count:
        raise MalformedRequest(f"the count must be that of the texts, {len(texts)}; got {count}")
    kind = list if isinstance(texts[0], list) else str
    for index, text in enumerate(texts):
        if not isinstance(text, kind) or (kind is list and not all(isinstance(token, str) for token in text)):
            raise MalformedRequest(
                f"the texts must all be text, or all be lists of tokens (is_tokenized); text {index} is {_name(text)}"
            )
    return texts


def _name(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return f"an empty {type(value).__name__}" if value in ([], {}, "") else names.get(type(value), "a number")


def split_pair(text: str | list[str]) -> Pair:
    """The two texts of `a ||| b`, or the text and None: split at the last ` ||| `, tokens at the first `|||`."""
    if isinstance(text, list):
        place = text.index("|||") if "|||" in text else len(text)
        return text[:place], text[place + 1 :] or None
    first, bar, second = text.strip().rpartition(" ||| ")
    return (first, second) if bar and second else (text, None)


def answer(vectors: np.ndarray, tokens: Sequence[Sequence[str]] | str, request_id: bytes) -> list[Buffer]:
    """Frames of the vectors `(texts, …)`: numbers as float32, little-endian whatever the machine."""
    numbers = np.ascontiguousarray(vectors, "<f4")
    words = {"dtype": "float32", "shape": numbers.shape, "tokens": tokens}
    return [json.dumps(words).encode(), numbers.reshape(-1).view(np.uint8).data, request_id]


def config(content: Mapping[str, Any], request_id: bytes) -> list[Buffer]:
    """Frames of what a command asks for."""
    return [json.dumps(content).encode(), request_id]


def error(fault: Exception, request_id: bytes) -> list[Buffer]:
    """Frames of a fault. bert-as-service has none, and its client waits for ever; but it hands `dtype` to NumPy, which
    raises an error that cites it. So the message is put there, and for clients that know it under `error`."""
    kind, message = "internal", "the server failed; its log says why"
    if is_refusal(fault):
        kind = next((word for known, word in TYPES.items() if isinstance(fault, known)), "invalid_request")
        message = str(fault)[:MESSAGE]
    words = {
        "dtype": f"server error: {message}",
        "shape": [0],
        "tokens": "",
        "error": {"type": kind, "message": message},
    }
    return [json.dumps(words).encode(), b"", request_id]


def is_refusal(fault: Exception) -> bool:
    """Whether the client may know what went wrong: anything else is for the log."""
    return isinstance(fault, (MalformedRequest, TextError, Refused, *TYPES))


def padded_shape(vectors: Sequence[np.ndarray], length: int | None) -> tuple[int, ...]:
    """The shape of `stack`."""
    if vectors[0].ndim == 1:
        return len(vectors), len(vectors[0])
    return len(vectors), length or max(map(len, vectors)), vectors[0].shape[1]


def stack(vectors: Sequence[np.ndarray], length: int | None) -> np.ndarray:
    """`(texts, dim)` of vectors `(dim,)`; of `(tokens, dim)` the array `(texts, length, dim)`, zeros behind the tokens
    of a text, where length None is that of the longest."""
    padded = np.zeros(padded_shape(vectors, length), np.float32)
    for row, vector in zip(padded, vectors, strict=True):
        row[: len(vector)] = vector
    return padded

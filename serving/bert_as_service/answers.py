"""Texts of bert-as-service's clients go in, one array and its tokens come out, from the model served just now."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from conf.errors import Problem
from serving.bert_as_service.config import ZmqConfig
from serving.bert_as_service.frames import Pair, ReplyTooLarge, Texts, padded_shape, split_pair, stack
from serving.errors import QueueFull, Refused, TextError
from serving.models import Models
from serving.service import Service

AGAIN = 0.02
"""Seconds after which a full queue is asked again."""
ASIDE = 65536
"""Bytes from which on work is done in another thread, so that the event loop stays free."""
T = TypeVar("T")


class Found(NamedTuple):
    """Of one text: its vector `(dim,)`, or one for each token `(length, dim)`; and its tokens."""

    vector: np.ndarray
    tokens: list[str]


class TextVectors:
    """What clients get of their texts: vectors, or what a head says of them."""

    def __init__(self, models: Models, config: ZmqConfig) -> None:
        self._models, self._config, self._turn = models, config, asyncio.Lock()

    def head(self, service: Service) -> str:
        """The head that `zmq.pooling` means; raises `Refused` where it cannot be told."""
        kind, name = self._config.pooling, self._config.head
        known = [each for each, head in service.manifest.heads.items() if head.kind == kind]
        if not known:
            raise Refused(str(Problem("zmq.pooling", "be null: the model has no head of this kind", kind)))
        if name is None and len(known) == 1:
            return known[0]
        if name not in known:
            raise Refused(str(Problem("zmq.head", f"be a {kind} head of the model", name, known)))
        return name

    async def of(self, texts: Texts) -> tuple[np.ndarray, list[list[str]] | str]:
        """`(texts, dim)` or `(texts, tokens, dim)`, and the tokens of each text ("" where a head answers).

        A text `a ||| b` is a pair. Raises a `ServingError`.
        """
        pairs, found = [split_pair(text) for text in texts], None
        while found is None:
            service = self._models.service()
            found = await self._found(service, pairs)
        length = service.manifest.tokenizer.max_length if self._config.fixed_length else None
        vectors = [each.vector for each in found]
        self._check_size(vectors, length)
        array = await aside(sum(vector.nbytes for vector in vectors), stack, vectors, length)
        return array, "" if self._config.pooling else [each.tokens for each in found]

    async def _found(self, service: Service, pairs: Sequence[Pair]) -> list[Found] | None:
        """What is found for the texts, piece by piece; None where another version has come in between: an answer shall
        be of one version, and this one may be gone, even before the first piece."""
        found: dict[int, Found] = {}
        for piece in self._pieces(pairs):
            await self._room(service)
            if self._models.service() is not service:
                return None
            try:
                answers = await self._ask(service, [pairs[index] for index in piece])
            except TextError as error:
                if len(piece) == len(pairs):
                    raise
                raise TextError(f"of the texts {piece[0]} to {piece[-1]}, {error}") from None  # which counts from there
            found |= zip(piece, answers, strict=True)
            self._check_size([each.vector for each in found.values()], None)
        return [found[index] for index in range(len(pairs))]

    async def _room(self, service: Service) -> None:
        """Returns once the queue has room: bert-as-service refuses nobody, its clients wait, and so in their order."""
        async with self._turn:
            while True:
                try:
                    return service.batcher.check_room()
                except QueueFull:
                    await asyncio.sleep(AGAIN)

    def _pieces(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """The places of texts that can be asked for at once: only pairs, or only single texts."""
        for is_pair in (False, True):
            places = [index for index, (_, second) in enumerate(pairs) if (second is not None) is is_pair]
            for start in range(0, len(places), self._config.piece):
                yield places[start : start + self._config.piece]

    async def _ask(self, service: Service, piece: Sequence[Pair]) -> list[Found]:
        texts: list[Any] = [first for first, _ in piece]
        texts_b: list[Any] | None = None if piece[0][1] is None else [second for _, second in piece]
        if self._config.pooling is None:
            encoded = await service.encode(texts, texts_b)
            tokens = map(service.tokens, encoded.ids)
            return [Found(vector, words) for vector, words in zip(encoded.vectors, tokens, strict=True)]
        if not isinstance(texts[0], str):
            raise Refused(f"texts must be given as text (is_tokenized=False): zmq.pooling is {self._config.pooling}")
        name = self.head(service)
        answers = (await service.classify(texts, texts_b, heads=[name])).results
        if self._config.pooling == "regression":
            return [Found(np.array([answer[name]["value"]], np.float32), []) for answer in answers]
        return [Found(np.array([*answer[name]["probabilities"].values()], np.float32), []) for answer in answers]

    def _check_size(self, vectors: Sequence[np.ndarray], length: int | None) -> None:
        size = 4 * int(np.prod(padded_shape(vectors, length)))
        if size > self._config.reply:
            raise ReplyTooLarge(f"texts must be fewer: one reply has at most {self._config.reply} bytes; got {size}")


async def aside(size: int, function: Callable[..., T], *args: object) -> T:
    """The function's result, found in another thread where it is about many bytes."""
    return await asyncio.to_thread(function, *args) if size > ASIDE else function(*args)

"""Texts go in, what each head says of them comes out, or vectors: what every protocol of the server calls.

One service is one version of the model: a tokenizer, a queue, and worker processes. Tokenising, inference and what
follows are three stages that run beside each other for different requests.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from serving.batcher import Batcher, Found
from serving.bundle import Bundle
from serving.config import EncodeConfig, LimitsConfig
from serving.errors import DeadlineExceeded, EngineError, QueueFull, Refused, ServingError, TextError, TooManyTexts
from serving.heads import Answer, Reads, Seen
from serving.metrics import VersionMetrics
from serving.pooling import Pooling
from serving.rows import Row
from serving.samples import Samples
from serving.steps import VECTOR, Heads, Want
from serving.tokenizer import Text, Tokenizer
from serving.tracing import span
from serving.vectors import plan
from serving.workers import Local, Worker

Result = dict[str, Answer]
"""One text's answers by head (`serving.heads`): {head: {"label": str, "probabilities": {label: float}}, …}."""
ASIDE = 4000
"""Characters from which on a request is tokenised in another thread: below, the way there takes longer."""
PROBE = 5.0
"""Seconds in which a model that failed must answer to count as ready again."""
T = TypeVar("T")


@dataclass(frozen=True)
class Answers:
    """One result a text (or pair), in the order of the texts, and whether the model read only a part of the text."""

    results: list[Result]
    truncated: list[bool]


@dataclass(frozen=True)
class Encoded:
    """Vectors of texts (or pairs).

    Attributes:
        vectors: one a text, `(dim,)`, or with pooling none one a token, `(length, dim)`; float32.
        ids: the token ids that were read of each text, special ones included.
        truncated: whether these are only a part of the text.
    """

    vectors: list[np.ndarray]
    ids: list[list[int]]
    truncated: list[bool]


@dataclass(frozen=True)
class Tokenized:
    """What the model reads of a text."""

    ids: list[int]
    tokens: list[str]
    truncated: bool


@dataclass(frozen=True)
class _Read:
    """The rows of each text, and the heads that they are for."""

    heads: list[str]
    rows: list[list[Row]]


class Service:
    """One version of the model behind its workers.

    Args:
        version: what it is called by.
        encode: what vectors are made of, where a request does not say.
        samples: take some of what is classified; None where none are kept.
    """

    def __init__(
        self, bundle: Bundle, version: str, workers: Sequence[Worker | Local], limits: LimitsConfig,
        encode: EncodeConfig, batcher: Batcher, metrics: VersionMetrics, samples: Samples | None,
    ) -> None:  # fmt: skip
        self.bundle, self.manifest, self.version = bundle, bundle.manifest, version
        self.workers, self.batcher, self.metrics = workers, batcher, metrics
        self._limits, self._encode = limits, encode
        self._tokenizer = Tokenizer(bundle)
        self._samples = samples and samples.of(self.manifest, version, self._tokenizer.unknown_id)
        self._works = True
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Returns once all workers answer. Raises `EngineError` where one cannot."""
        started = await asyncio.gather(*(worker.start() for worker in self.workers), return_exceptions=True)
        for error in started:
            if isinstance(error, BaseException):
                await self.close()
                raise error
        self.batcher.start()

    async def close(self) -> None:
        """Ends the workers once no request is open any more."""
        await self._idle.wait()
        await self.batcher.close()
        await asyncio.gather(*(worker.close() for worker in self.workers))

    async def is_ready(self) -> bool:
        """Whether the model answers: a worker is there, and the last row it was asked, or one asked now, succeeded."""
        if not any(worker.is_ready for worker in self.workers):
            return False
        if not self._works:
            row, want = Row(np.full(8, self.manifest.tokenizer.pad_id, np.int32), False), Heads(frozenset())
            with suppress(ServingError):
                await self._run([(row, want)], PROBE)
        return self._works

    async def classify(
        self, texts: Sequence[str], texts_b: Sequence[str] | None = None, *, heads: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Answers:  # fmt: skip
        """Answers for one request's texts, or pairs where `texts_b` is given: these from all heads, or those named.

        Raises a `ServingError`: of the texts, the queue, the time, the engine.
        """
        with self._request("classify", len(texts)) as seconds:
            reads = await self._read(texts, texts_b, heads)
            found = await self._found(reads, seconds(timeout))
            answers = await self._aside(texts, self._answers, reads, found)
            if self._samples:
                columns = [texts] if texts_b is None else [texts, texts_b]
                self._samples.note(columns, [(read.heads, read.rows) for read in reads], answers.results)
            return answers

    async def scores(
        self, texts: Sequence[str], texts_b: Sequence[str] | None = None, *, heads: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> list[dict[str, np.ndarray]]:  # fmt: skip
        """The model's own numbers for each text (or pair) by head, not calibrated: of a head of texts `Head.shape`
        (`(2, dim)` for a pair that is read apart), of [MASK]s `(masks, *shape)`, of the words that white space parts
        `(words, *shape)`, as the SavedModel's signatures give them. Raises as `classify`."""
        with self._request("scores", len(texts)) as seconds:
            reads = await self._read(texts, texts_b, heads)
            found = await self._found(reads, seconds(timeout))
            results: list[dict[str, np.ndarray]] = [{} for _ in texts]
            for read in reads:
                for result, rows in zip(results, read.rows, strict=True):
                    outputs = [next(found) for _ in rows]
                    for name in read.heads:
                        result[name] = self._numbers(name, rows, outputs)
            return results

    async def encode(
        self, texts: Sequence[Text], texts_b: Sequence[Text] | None = None, *, pooling: Pooling | None = None,
        layers: Sequence[int] | None = None, timeout: float | None = None, limit: int | None = None,
    ) -> Encoded:  # fmt: skip
        """Vectors of texts or pairs; `layers` (0: embeddings, -1: the last) side by side.

        Raises `Refused` for what the model does not have, `TooManyTexts` where pooling none would give more than
        `limit` bytes, else as `classify`.
        """
        layers = self._encode.layers if layers is None else layers
        with self._request("encode", len(texts)) as seconds:
            want = plan(self.manifest, self.workers[0].opened, layers, pooling or self._encode.pooling)
            self._check(texts, texts_b)
            with span("tokenize", texts=len(texts)):
                rows = await self._aside(texts, self._tokenizer.rows, texts, texts_b)
            size = self.manifest.encoder.dim if self.manifest.encoder else 0
            tokens = sum(len(row.ids) for row in rows) if want.pooling == "none" else 0
            if limit is not None and (needed := 4 * size * len(want.layers) * tokens) > limit:
                raise TooManyTexts(f"vectors of all tokens must have at most {limit} bytes; these would have {needed}")
            found = await self._run([(row, want) for row in rows], seconds(timeout))
            vectors = [each.outputs[VECTOR] for each in found]
            return Encoded(vectors, [row.ids.tolist() for row in rows], [row.truncated for row in rows])

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens of ids."""
        return [self._tokenizer.token(token_id) for token_id in ids]

    async def tokenize(self, texts: Sequence[str]) -> list[Tokenized]:
        """What the model reads of each text. Raises `TextError`, `TooManyTexts`, `QueueFull`."""
        with self._request("tokenize", len(texts)):
            self._check(texts, None)
            rows = await self._aside(texts, self._tokenizer.rows, texts, None)
            return [Tokenized(row.ids.tolist(), self.tokens(row.ids.tolist()), row.truncated) for row in rows]

    def reads(self, pairs: bool) -> bool:
        """Whether a head answers single texts, or pairs."""
        return bool(self._ways(pairs, self.manifest.heads))

    @contextmanager
    def _request(self, kind: str, texts: int) -> Iterator[Callable[[float | None], float]]:
        """A request from its permit to its answer; what it yields says how many seconds of its time are left."""
        began = time.perf_counter()

        def left(timeout: float | None) -> float:
            allowed = self._limits.timeout if timeout is None else min(timeout, self._limits.timeout)
            return max(allowed - (time.perf_counter() - began), 0.0)

        outcome = "failed"
        self._open += 1
        self._idle.clear()
        try:
            self._check_count(texts)
            with self.batcher.permit(texts):
                yield left
            outcome = "ok"
        except QueueFull:
            outcome = "refused"
            raise
        except (TextError, TooManyTexts, Refused):
            outcome = "invalid"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()
            self.metrics.request(kind, outcome, texts, time.perf_counter() - began)

    async def _read(
        self, texts: Sequence[str], texts_b: Sequence[str] | None, heads: Sequence[str] | None
    ) -> list[_Read]:
        """The texts in each of the ways in which heads read them."""
        self._check(texts, texts_b)
        known = self.manifest.heads
        if unknown := set(heads or ()) - known.keys():
            raise Refused(f"heads must be of the model; got {', '.join(sorted(unknown))}. Options: {', '.join(known)}")
        ways = self._ways(texts_b is not None, known if heads is None else heads)
        if not ways:
            rule = "be given: the model reads pairs" if texts_b is None else "be left out: the model reads single texts"
            raise TextError(f"texts_b must {rule}")

        def read() -> list[_Read]:
            return [_Read(names, self._tokenizer.read(way, texts, texts_b)) for way, names in ways.items()]

        with span("tokenize", texts=len(texts)):
            return await self._aside(texts, read)

    def _ways(self, pairs: bool, names: Collection[str]) -> dict[Reads, list[str]]:
        """The ways in which heads read texts (or pairs), and the heads of each; none where no head reads them so. Of a
        pair, heads of single texts read the first one."""
        ways: dict[Reads, list[str]] = {}
        heads = {name: head for name, head in self.manifest.heads.items() if name in names}
        if pairs and not any(head.reads in ("pair", "apart") for head in heads.values()):
            return ways
        for name, head in heads.items():
            if pairs or head.reads != "pair":
                ways.setdefault("text" if head.reads == "apart" and not pairs else head.reads, []).append(name)
        if "words" in ways and self._tokenizer.words_keep_ids:
            ways["words"] += ways.pop("text", [])
        return ways

    async def _found(self, reads: Sequence[_Read], seconds: float) -> Iterator[Found]:
        """What is found for the rows, one after the other."""
        rows: list[tuple[Row, Want]] = []
        for read in reads:
            want = Heads(frozenset(read.heads))
            rows += [(row, want) for each in read.rows for row in each]
        return iter(await self._run(rows, seconds))

    async def _run(self, rows: Sequence[tuple[Row, Want]], seconds: float) -> list[Found]:
        """Whether it succeeds says whether the model answers."""
        try:
            with span("infer", rows=len(rows), tokens=sum(len(row.ids) for row, _ in rows)):
                found = await self.batcher.run(rows, seconds)
        except (EngineError, DeadlineExceeded):
            self._works = False
            raise
        self._works = True
        return found

    def _answers(self, reads: Sequence[_Read], found: Iterator[Found]) -> Answers:
        count = len(reads[0].rows)
        answers = Answers([{} for _ in range(count)], [False] * count)
        for read in reads:
            for index, rows in enumerate(read.rows):
                outputs = [next(found) for _ in rows]
                for name in read.heads:
                    answers.results[index][name] = self.manifest.heads[name].answer(self._seen(name, rows, outputs))
                answers.truncated[index] |= any(row.truncated for row in rows)
        return answers

    def _seen(self, name: str, rows: Sequence[Row], found: Sequence[Found]) -> Seen:
        stages = self.workers[0].opened.stages
        temperatures = [stages[each.stages[name]].temperature.get(name) for each in found]
        return Seen(rows, [each.outputs[name] for each in found], temperatures, self._tokenizer.token)

    def _numbers(self, name: str, rows: Sequence[Row], found: Sequence[Found]) -> np.ndarray:
        head = self.manifest.heads[name]
        if head.level == "text":
            outputs = [each.outputs[name] for each in found]
            return outputs[0] if len(outputs) == 1 else np.stack(outputs)
        if head.level == "token":
            return rows[0].by_written_word(found[0].outputs[name])
        places = [each.outputs[name][row.places] for row, each in zip(rows, found, strict=True)]
        return np.concatenate(places) if places else np.zeros((0, *head.shape), np.float32)

    def _check_count(self, texts: int) -> None:
        if texts > self._limits.texts:
            raise TooManyTexts(f"texts must be at most {self._limits.texts} in a request; got {texts}")

    def _check(self, texts: Sequence[Text], texts_b: Sequence[Text] | None) -> None:
        if not texts:
            raise TextError("texts must hold at least one text; got none")
        if texts_b is not None and len(texts_b) != len(texts):
            raise TextError(f"texts_b must hold as many texts as texts, {len(texts)}; got {len(texts_b)}")
        for key, column in {"texts": texts, "texts_b": texts_b or ()}.items():
            for index, text in enumerate(column):
                if fault := _fault(text, self._limits.characters):
                    raise TextError(f"{key}.{index} must {fault}")

    async def _aside(self, texts: Sequence[Text], work: Callable[..., T], *arguments: object) -> T:
        """Does work that grows with the texts: much of it in another thread."""
        if sum(map(len, texts)) < ASIDE:
            return work(*arguments)
        return await asyncio.to_thread(work, *arguments)


def _fault(text: Text, limit: int) -> str | None:
    if not isinstance(text, str):
        wrong = next((fault for each in text if isinstance(each, str) and (fault := _fault(each, limit))), None)
        return wrong if len(text) <= limit else f"have at most {limit} tokens; got {len(text)}"
    if not text.strip():
        return "not be empty"
    if len(text) > limit:
        return f"have at most {limit} characters; got {len(text)}"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no tokenizer reads
        return f"be Unicode text; got a lone surrogate at character {error.start}"
    return None

"""Texts go in, what each head says of them comes out: what every protocol of the server calls.

Tokenising runs beside inference; inference has one thread of its own, so the event loop stays free meanwhile.
"""

import asyncio
import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving.bundle import Bundle
from serving.config import LimitsConfig
from serving.engines import Engine
from serving.heads import Answer, Reads, Seen
from serving.rows import Row, pad
from serving.stages import Journey, Underway, check_outputs
from serving.tokenizer import Tokenizer

Result = dict[str, Answer]
"""One text's answers by head (`serving.heads`): {head: {"label": str, "probabilities": {label: float}}, …}."""


class TextError(ValueError):
    """A text, or the list of them, is not acceptable; the message names the text's index."""


class TooManyTexts(ValueError):
    """More texts than one request may hold."""


@dataclass(frozen=True)
class Answers:
    """One result a text (or pair), in the order of the texts, and whether the model read only a part of the text."""

    results: list[Result]
    truncated: list[bool]


class Service:
    """One bundle behind one engine; `batch_tokens` bounds what the engine takes at once, padding included."""

    def __init__(self, bundle: Bundle, engine: Engine, limits: LimitsConfig, batch_tokens: int) -> None:
        self.manifest = bundle.manifest
        self._tokenizer = Tokenizer(bundle)
        self._engine = engine
        self._limits = limits
        self._batch_tokens = batch_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._works = False

    async def classify(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> Answers:
        """Answers for one request's texts, or pairs where `texts_b` is given: these from all heads.

        Raises `TooManyTexts` and `TextError` for what the limits refuse or no head reads, `EngineError` where the model
        fails.
        """
        self._check(texts, texts_b)
        answers = Answers([{} for _ in texts], [False] * len(texts))
        for way, heads in self._ways(texts_b is not None).items():
            read = await asyncio.to_thread(self._tokenizer.read, way, texts, texts_b)
            underway = [list(map(Underway, rows)) for rows in read]
            await self._answer(heads, list(itertools.chain(*underway)))
            found = await asyncio.to_thread(self._decode, heads, underway)
            for index, (rows, result) in enumerate(zip(read, found, strict=True)):
                answers.results[index].update(result)
                answers.truncated[index] |= any(row.truncated for row in rows)
        return answers

    def reads(self, pairs: bool) -> bool:
        """Whether a head answers single texts, or pairs."""
        return bool(self._ways(pairs))

    def _ways(self, pairs: bool) -> dict[Reads, list[str]]:
        """The ways in which heads read texts (or pairs), and the heads of each; none where no head reads them so. Of a
        pair, heads of single texts read the first one."""
        ways: dict[Reads, list[str]] = {}
        heads = self.manifest.heads
        if pairs and not any(head.reads in ("pair", "apart") for head in heads.values()):
            return ways
        for name, head in heads.items():
            if pairs or head.reads != "pair":
                ways.setdefault("text" if head.reads == "apart" and not pairs else head.reads, []).append(name)
        if "words" in ways and self._tokenizer.words_keep_ids:
            ways["words"] += ways.pop("text", [])
        return ways

    def _decode(self, heads: Sequence[str], texts: Sequence[Sequence[Underway]]) -> list[Result]:
        """What the heads say of the texts, from their outputs for the rows of each."""
        token = self._tokenizer.token

        def seen(name: str, rows: Sequence[Underway]) -> Seen:
            outputs = [each.outputs[name] for each in rows]
            return Seen(
                [each.row for each in rows], outputs, [each.stages[name].temperature.get(name) for each in rows], token
            )

        return [{name: self.manifest.heads[name].answer(seen(name, rows)) for name in heads} for rows in texts]

    async def warm_up(self) -> None:
        """Runs one row of full length through all stages; raises `EngineError` where the model does not answer as its
        manifest says."""
        settings = self.manifest.tokenizer
        arrays = pad([Row(np.full(settings.max_length, settings.pad_id, np.int32), False)], settings.pad_id)._asdict()

        def run() -> None:
            for outputs in self._engine.predict(arrays):
                check_outputs(outputs, self.manifest.heads, 1, settings.max_length)

        await self._in_engine(run)

    async def is_ready(self) -> bool:
        """Whether the model answers: the last prediction succeeded, or one made now does."""
        if not self._works:
            try:
                await self.warm_up()
            except Exception:  # of whatever kind: it says that the engine does not work
                return False
        return True

    def _check(self, texts: Sequence[str], texts_b: Sequence[str] | None) -> None:
        if len(texts) > self._limits.texts:
            raise TooManyTexts(f"texts must be at most {self._limits.texts} in a request; got {len(texts)}")
        if not texts:
            raise TextError("texts must hold at least one text; got none")
        if texts_b is not None and len(texts_b) != len(texts):
            raise TextError(f"texts_b must hold as many texts as texts, {len(texts)}; got {len(texts_b)}")
        if not self.reads(pairs=texts_b is not None):
            rule = "be given: the model reads pairs" if texts_b is None else "be left out: the model reads single texts"
            raise TextError(f"texts_b must {rule}")
        for key, column in {"texts": texts, "texts_b": texts_b or ()}.items():
            for index, text in enumerate(column):
                if fault := _fault(text, self._limits.characters):
                    raise TextError(f"{key}.{index} must {fault}")

    async def _answer(self, heads: Sequence[str], rows: Sequence[Underway]) -> None:
        """Takes the rows to the answers of the heads."""
        settings = self.manifest.tokenizer
        journey = Journey(self._engine, self.manifest.heads, heads, rows, self._batch_tokens, settings.pad_id)
        while (batch := journey.next()) is not None:
            # One batch at a time: a large request leaves the thread to others in between.
            await self._in_engine(functools.partial(journey.run, batch))

    async def _in_engine(self, work: Callable[[], None]) -> None:
        """Does the work in the engine's thread; whether it succeeds says whether the model answers."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except Exception:
            self._works = False
            raise
        self._works = True


def _fault(text: str, limit: int) -> str | None:
    if not text.strip():
        return "not be empty"
    if len(text) > limit:
        return f"have at most {limit} characters; got {len(text)}"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no tokenizer reads
        return f"be Unicode text; got a lone surrogate at character {error.start}"
    return None

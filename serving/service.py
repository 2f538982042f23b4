"""Texts go in, what each head says of them comes out: what every protocol of the server calls.

Tokenising runs beside inference; inference has one thread of its own, so the event loop stays free meanwhile.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving.bundle import Bundle
from serving.config import LimitsConfig
from serving.engines import Engine, EngineError
from serving.heads import Answer, Head, Reads, Seen
from serving.rows import Row, pad
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
            for batch in plan_batches(list(map(_padded_tokens, read)), self._batch_tokens):
                # One batch at a time: a large request leaves the thread to others in between.
                chosen = [read[index] for index in batch]
                outputs = await self._predict(list(itertools.chain(*chosen)))
                found = await asyncio.to_thread(self._decode, heads, chosen, outputs)
                for index, rows, result in zip(batch, chosen, found, strict=True):
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

    def _decode(
        self, heads: Sequence[str], read: Sequence[Sequence[Row]], outputs: dict[str, np.ndarray]
    ) -> list[Result]:
        """What the heads say of the texts whose rows are `read`, from their outputs for all rows."""
        starts = itertools.accumulate(map(len, read), initial=0)
        return [
            {
                name: self.manifest.heads[name].answer(
                    Seen(rows, outputs[name][start : start + len(rows)] if rows else (), self._tokenizer.token)
                )
                for name in heads
            }
            for rows, start in zip(read, starts, strict=False)
        ]

    async def warm_up(self) -> None:
        """Runs one row of full length; raises `EngineError` where the model does not answer as its manifest says."""
        settings = self.manifest.tokenizer
        await self._predict([Row(np.full(settings.max_length, settings.pad_id, np.int32), False)])

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

    async def _predict(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """The heads' outputs for the rows; none for no rows."""
        if not rows:
            return {}
        padded = pad(rows, self.manifest.tokenizer.pad_id)
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._thread, self._engine.predict, *padded)
            check_outputs(outputs, self.manifest.heads, *padded.token_ids.shape)
        except Exception:
            self._works = False
            raise
        self._works = True
        return outputs


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


def plan_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of rows in batches, shortest rows first, so that rows x longest row is at most `tokens` in each.

    A row longer than that goes alone.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[index] > tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def check_outputs(outputs: dict[str, np.ndarray], heads: Mapping[str, Head], rows: int, length: int) -> None:
    """Raises `EngineError` unless every head has finite numbers of its shape for rows of that length."""
    for name, head in heads.items():
        if name not in outputs:
            raise EngineError(f"the model must have an output for head {name}; it has {', '.join(outputs) or 'none'}")
        if outputs[name].shape != (shape := head.output_shape(rows, length)):
            raise EngineError(f"head {name} must give numbers of shape {shape}; got shape {outputs[name].shape}")
        if not np.isfinite(outputs[name]).all():
            raise EngineError(f"head {name} must give finite numbers; got NaN or infinity")


def _padded_tokens(rows: Sequence[Row]) -> int:
    """How many tokens the rows of one text take side by side."""
    return len(rows) * max((len(row.ids) for row in rows), default=0)

"""Texts go in, each head's label and probabilities come out: what every protocol of the server calls.

Tokenising runs beside inference; inference has one thread of its own, so the event loop stays free meanwhile.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.bundle import Bundle, Head
from serving.config import LimitsConfig
from serving.engines import Engine, EngineError
from serving.tokenizer import PaddedRows, Tokenizer

Result = dict[str, dict[str, Any]]
"""One text's answers: {head: {"label": str, "probabilities": {label: float}}}."""


class TextError(ValueError):
    """A text, or the list of them, is not acceptable; the message names the text's index."""


class TooManyTexts(ValueError):
    """More texts than one request may hold."""


@dataclass(frozen=True)
class Answer:
    """One result a text, in the order of the texts, and whether the model read only a part of the text."""

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

    async def classify(self, texts: Sequence[str]) -> Answer:
        """Answers for one request's texts.

        Raises `TooManyTexts` and `TextError` for what the limits refuse, `EngineError` where the model fails.
        """
        self._check(texts)
        rows = await asyncio.to_thread(self._tokenizer.encode, texts)
        results: dict[int, Result] = {}
        for batch in plan_batches([len(row.ids) for row in rows], self._batch_tokens):
            # One batch at a time: a large request leaves the thread to others in between.
            outputs = await self._predict(self._tokenizer.pad([rows[index] for index in batch]))
            results.update(zip(batch, _results(self.manifest.heads, outputs), strict=True))
        return Answer([results[index] for index in range(len(texts))], [row.truncated for row in rows])

    async def warm_up(self) -> None:
        """Runs one row of full length; raises `EngineError` where the model does not answer as its manifest says."""
        row = np.full((1, self.manifest.tokenizer.max_length), self.manifest.tokenizer.pad_id, np.int32)
        await self._predict(PaddedRows(row, np.zeros_like(row), np.ones_like(row)))

    async def is_ready(self) -> bool:
        """Whether the model answers: the last prediction succeeded, or one made now does."""
        if not self._works:
            try:
                await self.warm_up()
            except Exception:  # of whatever kind: it says that the engine does not work
                return False
        return True

    def _check(self, texts: Sequence[str]) -> None:
        if len(texts) > self._limits.texts:
            raise TooManyTexts(f"texts must be at most {self._limits.texts} in a request; got {len(texts)}")
        if not texts:
            raise TextError("texts must hold at least one text; got none")
        for index, text in enumerate(texts):
            if fault := _fault(text, self._limits.characters):
                raise TextError(f"texts.{index} must {fault}")

    async def _predict(self, rows: PaddedRows) -> dict[str, np.ndarray]:
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._thread, self._engine.predict, *rows)
            check_outputs(outputs, self.manifest.heads, len(rows.token_ids))
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


def check_outputs(outputs: dict[str, np.ndarray], heads: dict[str, Head], rows: int) -> None:
    """Raises `EngineError` unless every head has finite numbers of shape `(rows, labels)`."""
    for name, head in heads.items():
        if name not in outputs:
            raise EngineError(f"the model must have an output for head {name}; it has {', '.join(outputs) or 'none'}")
        if outputs[name].shape != (rows, len(head.labels)):
            raise EngineError(
                f"head {name} must give {rows} x {len(head.labels)} probabilities; got shape {outputs[name].shape}"
            )
        if not np.isfinite(outputs[name]).all():
            raise EngineError(f"head {name} must give finite probabilities; got NaN or infinity")


def _results(heads: dict[str, Head], outputs: dict[str, np.ndarray]) -> list[Result]:
    answers = {
        name: [
            {"label": head.labels[best], "probabilities": dict(zip(head.labels, row, strict=True))}
            for best, row in zip(outputs[name].argmax(axis=1), outputs[name].tolist(), strict=True)
        ]
        for name, head in heads.items()
    }
    return [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]

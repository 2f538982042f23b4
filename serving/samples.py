"""Texts that were classified go in with their answers; of some of them, drawn at random, JSON lines come out.

A line is a sample, or how often pieces (tokens) stood in a window of many samples together: without `samples.texts`
no line tells which pieces one text had. `python -m bert_mtl.drift` reads them. A thread of its own writes; what goes
wrong there is counted and told in the log, and no answer waits for it.
"""

import json
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from serving.bundle import Manifest
from serving.config import SamplesConfig
from serving.heads import Answer
from serving.logs import request_id
from serving.metrics import Metrics
from serving.rows import Row
from serving.sample_files import SampleFiles

WAITING = 1000
"""Samples that wait for the disk at most; further ones are lost."""
CLOSING = 5.0
"""Seconds that what waits may take to be written at the server's end."""
log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """The tasks whose heads read a text in the same way, and its rows."""

    tasks: tuple[str, ...]
    rows: Sequence[Row]


class Sample(NamedTuple):
    """A text (or pair) and all that was answered of it."""

    time: float
    version: "VersionSamples"
    request: str | None
    texts: tuple[str, ...]
    readings: list[Reading]
    answers: Mapping[str, Answer]


@dataclass
class Window:
    """How often each piece stood in some samples of a version that were read for the same tasks."""

    texts: int = 0
    pieces: Counter[int] = field(default_factory=Counter)


class Samples:
    """All samples of a server.

    Args:
        seed: of the dice; None for others each time.
    """

    def __init__(self, config: SamplesConfig, metrics: Metrics, seed: int | None = None) -> None:
        assert config.dir is not None, "samples are asked for"
        self._config, self._metrics = config, metrics
        self._files = SampleFiles(config.dir, config.bytes, config.files)
        self._dice = np.random.default_rng(seed)
        self._ahead = self._gap() - 1
        self._windows: dict[tuple[str, tuple[str, ...]], Window] = {}
        self._queue: queue.Queue[Sample | None] = queue.Queue(WAITING)
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
        self._thread.start()

    def of(self, manifest: Manifest, version: str, unknown: int) -> "VersionSamples":
        """The samples of a version; `unknown` is its tokenizer's id of what it does not know."""
        return VersionSamples(self, manifest, version, unknown)

    def drawn(self, count: int) -> list[int]:
        """The places of those of the next `count` texts that are samples. (Not by the request's id, which clients
        choose: one that always sends the same would always be sampled, or never.)"""
        places = []
        while self._ahead < count:
            places.append(self._ahead)
            self._ahead += self._gap()
        self._ahead -= count
        return places

    def put(self, sample: Sample) -> None:
        """Takes a sample, or loses it where the disk is too slow."""
        try:
            self._queue.put_nowait(sample)
        except queue.Full:
            self._lost(sample, "the disk is too slow")

    def close(self) -> None:
        """Writes what waits, for as long as that may take. A window that is not full goes untold."""
        try:
            self._queue.put(None, timeout=CLOSING)
        except queue.Full:
            return
        self._thread.join(CLOSING)

    def _gap(self) -> int:
        """From one sample to the next, in texts."""
        return int(self._dice.geometric(self._config.fraction))

    def _run(self) -> None:
        while sample := self._queue.get():
            try:
                for told in (sample.version.told(sample, self._config.texts), *self._full_windows(sample)):
                    self._files.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")
            except Exception as error:  # whatever it is, the next sample may be written again
                self._lost(sample, error)
            else:
                self._failing = False
                self._metrics.samples.labels(sample.version.version, "written").inc()
        self._files.close()

    def _lost(self, sample: Sample, reason: object) -> None:
        self._metrics.samples.labels(sample.version.version, "lost").inc()
        if not self._failing:
            log.error("samples are lost, until they can be written to %s again: %s", self._config.dir, reason)
        self._failing = True

    def _full_windows(self, sample: Sample) -> list[dict[str, Any]]:
        """Counts the pieces of a sample; what to tell of windows that are full with it."""
        version, full = sample.version, []
        for tasks, rows in sample.readings:
            window = self._windows.setdefault((version.version, tasks), Window())
            window.texts += 1
            for row in rows:
                window.pieces.update(version.pieces(row))
            if window.texts >= self._config.window:
                del self._windows[version.version, tasks]
                pieces = {str(piece): count for piece, count in sorted(window.pieces.items())}
                full.append(
                    {"time": _iso(sample.time), "version": version.version, "tasks": tasks, "texts": window.texts,
                     "pieces": pieces}
                )  # fmt: skip
        return full


class VersionSamples:
    """The samples of one version of the model."""

    def __init__(self, samples: Samples, manifest: Manifest, version: str, unknown: int) -> None:
        self._samples, self._heads, self.version, self._unknown = samples, manifest.heads, version, unknown
        tokenizer = manifest.tokenizer
        self._special = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]

    def note(
        self, columns: Sequence[Sequence[str]], reads: Sequence[tuple[Sequence[str], Sequence[Sequence[Row]]]],
        results: Sequence[Mapping[str, Answer]],
    ) -> None:  # fmt: skip
        """Takes samples of a request.

        Args:
            columns: its texts, or those and the second ones.
            reads: names of heads, and the rows of each text that they have read.
            results: answers of each text by head.
        """
        for place in self._samples.drawn(len(results)):
            readings = [
                Reading(tuple(dict.fromkeys(self._heads[name].task for name in names)), rows[place])
                for names, rows in reads
                if rows[place]
            ]
            texts = tuple(column[place] for column in columns)
            self._samples.put(Sample(time.time(), self, request_id.get(), texts, readings, results[place]))

    def told(self, sample: Sample, texts: bool) -> dict[str, Any]:
        """The line of a sample, with its `texts` or without."""
        read = [
            {
                "tasks": tasks,
                "tokens": [len(row.ids) for row in rows],
                "unknown": sum(int(np.sum(row.ids == self._unknown)) for row in rows),
                "truncated": any(row.truncated for row in rows),
            }
            for tasks, rows in sample.readings
        ]
        answers = {name: short for name, answer in sample.answers.items() if (short := shortened(answer)) is not None}
        told = {"time": _iso(sample.time), "version": self.version, "request": sample.request}
        given = dict(zip(("text", "text_b"), sample.texts, strict=False)) if texts else {}
        return told | {"read": read, "answers": answers} | given

    def pieces(self, row: Row) -> dict[int, int]:
        """How often each piece stands in a row; [CLS] and the like are none."""
        ids, counts = np.unique(row.ids, return_counts=True)
        return {piece: count for piece, count in zip(ids.tolist(), counts.tolist(), strict=True)
                if piece not in self._special}  # fmt: skip


def shortened(answer: Answer) -> dict[str, Any] | None:
    """What a sample keeps of an answer: the label and its probability, all labels, the number, how alike the texts are,
    or how many spans there are of each type (not their words); None of vectors and of guesses behind [MASK]."""
    if "label" in answer:
        return {"label": answer["label"], "probability": round(answer["probabilities"][answer["label"]], 6)}
    for key in ("labels", "value", "similarity"):
        if key in answer:
            return {key: answer[key]}
    if "spans" in answer:
        return {"spans": dict(Counter(span["type"] for span in answer["spans"]))}
    return None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")

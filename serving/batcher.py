"""Rows of all requests to batches, and back: one queue before the workers of a model (asyncio alone).

A free worker takes what waits at once, in fair order (`serving.plan`); nothing waits for a fuller batch.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from serving.errors import DeadlineExceeded, EngineError, QueueFull
from serving.plan import next_batch, start_tags
from serving.rows import Row
from serving.steps import Heads, Item, Passed, Step, Vectors, Want
from serving.workers import WorkerLost

log = logging.getLogger(__name__)


class Runs(Protocol):
    """What the batcher needs of a worker (`serving.workers.Worker`); it runs `lanes` steps side by side, and has lost
    what it kept whenever `restarts` has grown."""

    @property
    def lanes(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    async def ready(self) -> None: ...

    async def run(self, step: Step) -> list[Passed]: ...


class Meter(Protocol):
    """Is told of every batch that was run."""

    def batch(self, stage: int, rows: int, tokens: int, area: int, seconds: float) -> None: ...


@dataclass(frozen=True)
class Found:
    """What was found for a row: numbers by head (or `steps.VECTOR`), and the stage that each is from."""

    outputs: dict[str, np.ndarray]
    stages: dict[str, int]


@dataclass(eq=False)
class Request:
    """Rows that are answered together."""

    left: int
    done: asyncio.Future[None]


@dataclass(eq=False)
class Job:
    """A row on its way; `worker` has its states, once it has passed a stage."""

    key: int
    row: Row
    want: Want
    request: Request
    tag: tuple[float, int]
    stage: int = 0
    worker: Runs | None = None
    alone: bool = False
    lost: bool = False
    found: Found = field(default_factory=lambda: Found({}, {}))

    @property
    def length(self) -> int:
        return len(self.row.ids)

    @property
    def lot(self) -> object:
        return self.stage, self.want if isinstance(self.want, Vectors) else None

    def item(self) -> Item:
        want = self.want
        if isinstance(want, Heads):
            want = Heads(want.names - self.found.outputs.keys())
        return Item(self.key, self.row.ids, self.row.second, want)

    def back(self) -> None:
        """To the start: its worker is lost, and what it kept."""
        self.stage, self.worker = 0, None
        self.found.outputs.clear()
        self.found.stages.clear()


class Batcher:
    """The queue of one model.

    Args:
        tokens: of a batch, padding included; a longer row goes alone.
        limit: texts that are being answered at most.
    """

    def __init__(self, workers: Sequence[Runs], tokens: int, limit: int, meter: Meter) -> None:
        self.workers, self.tokens, self.limit, self.meter = workers, tokens, limit, meter
        self.texts = 0
        """Texts that are being answered."""
        self._pace = np.zeros(2)  # rows answered and seconds of a batch, as of late
        self._waiting: dict[int, Job] = {}
        self._forgotten: dict[Runs, list[int]] = {worker: [] for worker in workers}
        self._restarts = {worker: worker.restarts for worker in workers}
        self._keys = itertools.count()
        self._clock = 0.0
        self._arrived = asyncio.Event()
        self._drivers: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> tuple[int, int]:
        """Rows that wait for a worker, and their tokens."""
        return len(self._waiting), sum(job.length for job in self._waiting.values())

    def start(self) -> None:
        """Begins to run what comes."""
        lanes = [worker for worker in self.workers for _ in range(worker.lanes)]
        self._drivers = [asyncio.create_task(self._drive(worker), name="batches") for worker in lanes]

    async def close(self) -> None:
        """Ends it; what still waits is not run."""
        for driver in self._drivers:
            driver.cancel()
        await asyncio.gather(*self._drivers, return_exceptions=True)

    @contextmanager
    def permit(self, texts: int) -> Iterator[None]:
        """Room for a request's texts. Raises `QueueFull`."""
        self.check_room()
        self.texts += texts
        try:
            yield
        finally:
            self.texts -= texts

    def check_room(self) -> None:
        """Raises `QueueFull` where no request is let in. (One may exceed the limit, so a large one fits too.)"""
        if self.texts >= self.limit:
            raise QueueFull(self.limit, self.retry_after())

    def retry_after(self) -> int:
        """Seconds until there should be room."""
        answered, seconds = self._pace
        return min(math.ceil(self.texts * seconds / (answered * len(self._drivers))), 60) if answered else 1

    async def run(self, rows: Sequence[tuple[Row, Want]], seconds: float) -> list[Found]:
        """What is found for each row, within so many seconds.

        Raises `EngineError` where the model fails, `DeadlineExceeded`. Rows of a request that is cancelled are not run.
        """
        if not rows:
            return []
        request = Request(len(rows), asyncio.get_running_loop().create_future())
        tags = start_tags(self._clock, [len(row.ids) for row, _ in rows])
        jobs = [
            Job(key := next(self._keys), row, want, request, (tag, key))
            for (row, want), tag in zip(rows, tags, strict=True)
        ]
        self._wait(jobs)
        try:
            await asyncio.wait_for(request.done, seconds)
        except TimeoutError:
            raise DeadlineExceeded(seconds) from None
        finally:
            request.done.cancel()
            for job in jobs:
                if self._waiting.pop(job.key, None) and job.worker:
                    self._forgotten[job.worker].append(job.key)
        return [job.found for job in jobs]

    def _wait(self, jobs: Sequence[Job]) -> None:
        self._waiting |= {job.key: job for job in jobs}
        self._arrived.set()

    async def _drive(self, worker: Runs) -> None:
        """Keeps a lane of a worker busy."""
        while True:
            await worker.ready()
            if worker.restarts != self._restarts[worker]:  # it may have ended between two steps
                self._restarts[worker] = worker.restarts
                self._free(worker)
            batch = next_batch((job for job in self._waiting.values() if job.worker in (None, worker)), self.tokens)
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            for job in batch:
                del self._waiting[job.key]
            self._clock = max(self._clock, batch[0].tag[0])
            try:
                await self._run(worker, batch)
            except Exception as error:  # a fault of ours: it shall not end the worker's driver
                log.exception("a batch failed")
                self._fail(batch, EngineError(f"{type(error).__name__}: {error}"))

    async def _run(self, worker: Runs, batch: Sequence[Job]) -> None:
        forgotten, self._forgotten[worker] = self._forgotten[worker], []
        began = time.perf_counter()
        try:
            found = await worker.run(Step(batch[0].stage, [job.item() for job in batch], forgotten))
        except WorkerLost as error:
            return self._lost(worker, batch, error)
        except EngineError as error:
            if len(batch) == 1:
                self._forget(worker, batch)
                return self._fail(batch, error)
            log.warning("a batch of %d rows failed, so each is run alone: %s", len(batch), error)
            for job in batch:
                job.alone = True
            self._forget(worker, [job for job in batch if job.request.done.done()])
            return self._wait([job for job in batch if not job.request.done.done()])
        self._measure(batch, found, time.perf_counter() - began)
        for job, passed in zip(batch, found, strict=True):
            job.found.outputs.update(passed.outputs)
            job.found.stages.update(dict.fromkeys(passed.outputs, job.stage))
            if not passed.goes_on:
                self._answered(job.request)
                continue
            job.stage, job.worker = job.stage + 1, worker
            if job.request.done.done():
                self._forgotten[worker].append(job.key)
            else:
                self._wait([job])

    def _answered(self, request: Request) -> None:
        request.left -= 1
        if request.left == 0 and not request.done.done():
            request.done.set_result(None)

    def _fail(self, batch: Sequence[Job], error: EngineError) -> None:
        for job in batch:
            if not job.request.done.done():
                job.request.done.set_exception(error)

    def _lost(self, worker: Runs, batch: Sequence[Job], error: WorkerLost) -> None:
        """Runs the batch once more, each row alone, for one of them may have been the cause; and from the start all
        rows whose states the worker kept."""
        log.error("%s with a batch of %d rows, which are run again", error, len(batch))
        again = [job for job in batch if not job.lost]
        self._fail([job for job in batch if job.lost], EngineError("two workers ended while they had the text"))
        for job in again:
            job.lost = job.alone = True
            job.back()
        self._free(worker)
        self._wait([job for job in again if not job.request.done.done()])

    def _free(self, worker: Runs) -> None:
        """Sends rows whose states a worker kept that has ended back to the start."""
        for job in self._waiting.values():
            if job.worker is worker:
                job.back()
        self._forgotten[worker].clear()

    def _forget(self, worker: Runs, batch: Sequence[Job]) -> None:
        self._forgotten[worker] += [job.key for job in batch if job.worker]

    def _measure(self, batch: Sequence[Job], found: Sequence[Passed], seconds: float) -> None:
        tokens, longest = sum(job.length for job in batch), max(job.length for job in batch)
        self.meter.batch(batch[0].stage, len(batch), tokens, longest * len(batch), seconds)
        pace = np.array([sum(not passed.goes_on for passed in found), seconds])
        self._pace = 0.95 * self._pace + 0.05 * pace if self._pace.any() else pace

"""The queue before the workers: who is run beside whom, who waits, who is refused, and what a lost worker costs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from serving.batcher import Batcher, Found
from serving.errors import DeadlineExceeded, EngineError, QueueFull
from serving.metrics import Metrics, VersionMetrics
from serving.rows import Row
from serving.steps import Heads, Passed, Step
from serving.workers import WorkerLost

IMDB = Heads(frozenset(["imdb"]))


def row(number: int, length: int = 4) -> Row:
    """A row whose first id is its number."""
    return Row(np.array([number, *[9] * (length - 1)]), False)


class Slow:
    """A worker that answers a row with its number, once it is let; `fault(numbers)` may raise instead."""

    def __init__(self, fault: Callable[[list[int]], None] = lambda numbers: None, stages: int = 1) -> None:
        self.fault, self.stages = fault, stages
        self.open, self.seen, self.forgotten = asyncio.Event(), [], []
        self.open.set()

    lanes, restarts = 1, 0

    async def ready(self) -> None: ...

    async def run(self, step: Step) -> list[Passed]:
        numbers = [int(item.ids[0]) for item in step.items]
        self.seen.append((step.stage, numbers))
        self.forgotten += step.forgotten
        await asyncio.sleep(0)
        await self.open.wait()
        self.fault(numbers)
        last = step.stage == self.stages - 1
        return [Passed({"imdb": np.array([number])} if last else {}, not last) for number in numbers]


def tried(story: Callable[[Batcher, list[Slow]], Awaitable[Any]], *workers: Slow, limit: int = 100) -> Any:
    """What a story with a batcher of these workers, 16 tokens a batch, comes to."""

    async def run() -> Any:
        batcher = Batcher(workers, 16, limit, VersionMetrics(Metrics(), "1"))
        batcher.start()
        try:
            return await story(batcher, list(workers))
        finally:
            await batcher.close()

    return asyncio.run(asyncio.wait_for(run(), 20))


async def asked(batcher: Batcher, *numbers: int, seconds: float = 10, length: int = 4) -> list[int]:
    found: list[Found] = await batcher.run([(row(number, length), IMDB) for number in numbers], seconds)
    return [int(each.outputs["imdb"][0]) for each in found]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_requests_that_wait_are_run_together_and_a_lone_one_at_once():
    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        workers[0].open.clear()
        tasks = [asyncio.create_task(asked(batcher, number)) for number in range(5)]
        await settled()
        assert workers[0].seen == [(0, [0, 1, 2, 3])]  # they came before the worker looked
        tasks += [asyncio.create_task(asked(batcher, 5, 6))]
        await settled()
        workers[0].open.set()
        assert await asyncio.gather(*tasks) == [[0], [1], [2], [3], [4], [5, 6]]
        assert workers[0].seen[1:] == [(0, [4, 5, 6])]
        assert await asked(batcher, 7) == [7]
        assert workers[0].seen[2:] == [(0, [7])]

    tried(story, Slow())


def test_two_workers_share_a_large_request():
    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        assert await asked(batcher, *range(12)) == list(range(12))
        assert [sum(len(numbers) for _, numbers in worker.seen) for worker in workers] in ([8, 4], [4, 8])

    tried(story, Slow(), Slow())


def test_a_row_goes_on_in_the_worker_that_has_its_states():
    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        assert await asked(batcher, *range(8)) == list(range(8))
        for worker in workers:
            numbers = worker.seen[0][1]
            assert worker.seen == [(0, numbers), (1, numbers), (2, numbers)]

    tried(story, Slow(stages=3), Slow(stages=3))


def test_late_and_cancelled_requests_leave_the_queue_and_their_states_are_forgotten():
    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        (worker,) = workers
        worker.open.clear()
        running = asyncio.create_task(asked(batcher, 1))
        await settled()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0.02 s"):
            await asked(batcher, 2, seconds=0.02)
        cancelled = asyncio.create_task(asked(batcher, 3))
        await settled()
        assert batcher.waiting == (1, 4)
        cancelled.cancel()
        await settled()
        assert batcher.waiting == (0, 0)
        running.cancel()  # it has states in the worker by the time that the step ends
        await settled()
        worker.open.set()
        assert await asked(batcher, 4) == [4]
        assert [numbers for stage, numbers in worker.seen] == [[1], [4], [4]]
        assert len(worker.forgotten) == 1

    tried(story, Slow(stages=2))


def test_a_full_queue_refuses_and_says_when_to_come_again():
    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        with batcher.permit(2), batcher.permit(5):  # a large one may exceed the limit
            assert batcher.texts == 7
            with pytest.raises(QueueFull, match="^the server is busy with 3 texts; ask again in 1 s$") as error, \
                    batcher.permit(1):  # fmt: skip
                pass
            assert error.value.retry_after == 1
        with batcher.permit(1):
            assert batcher.texts == 1

    tried(story, Slow(), limit=3)


def test_a_row_that_breaks_its_batch_fails_alone():
    def fault(numbers: list[int]) -> None:
        if 2 in numbers:
            raise EngineError("NaN")

    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        workers[0].open.clear()
        tasks = [asyncio.create_task(asked(batcher, number)) for number in (9, 1, 2, 3)]
        await settled()
        workers[0].open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert found[:2] + found[3:] == [[9], [1], [3]] and str(found[2]) == "NaN"
        assert workers[0].seen == [(0, [9, 1, 2, 3]), (0, [9]), (0, [1]), (0, [2]), (0, [3])]

    tried(story, Slow(fault))


def test_rows_of_a_lost_worker_are_run_once_more_each_alone():
    lost: list[list[int]] = []

    def once(numbers: list[int]) -> None:
        if not lost:
            lost.append(numbers)
            raise WorkerLost("worker 1 was lost")

    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        assert await asked(batcher, 1, 2, 3) == [1, 2, 3]
        assert workers[0].seen == [(0, [1, 2, 3]), (0, [1]), (0, [2]), (0, [3])]

    tried(story, Slow(once))


def test_a_row_that_ends_two_workers_fails_and_its_neighbours_do_not():
    def fault(numbers: list[int]) -> None:
        if 2 in numbers:
            raise WorkerLost("worker 1 was lost")

    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        found = await asyncio.gather(*(asked(batcher, number) for number in (1, 2, 3)), return_exceptions=True)
        assert [found[0], found[2]] == [[1], [3]]
        assert isinstance(found[1], EngineError) and "two workers ended" in str(found[1])

    tried(story, Slow(fault))


def test_rows_whose_states_went_with_their_worker_begin_again():
    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        (worker,) = workers

        def fault(numbers: list[int]) -> None:
            if worker.seen == [(0, [1, 2, 3]), (1, [1, 2, 3])]:
                raise WorkerLost("worker 1 was lost")

        worker.fault = fault
        assert await asked(batcher, 1, 2, 3) == [1, 2, 3]
        assert sorted(worker.seen[2:]) == [(stage, [number]) for stage in (0, 1) for number in (1, 2, 3)]

    tried(story, Slow(stages=2))


def test_a_fault_of_the_batcher_itself_does_not_end_it():
    def fault(numbers: list[int]) -> None:
        if 2 in numbers:
            raise ZeroDivisionError

    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await asked(batcher, 2)
        assert await asked(batcher, 1) == [1]

    tried(story, Slow(fault))


def test_batches_are_counted_with_their_padding():
    metrics = Metrics()

    async def run() -> None:
        batcher = Batcher([Slow()], 100, 10, VersionMetrics(metrics, "7"))
        batcher.start()
        await batcher.run([(row(1, 20), IMDB), (row(2, 19), IMDB)], 10)
        await batcher.close()

    asyncio.run(run())
    text = metrics.exposition().decode()
    for name, value in {"batches": 1, "batch_rows": 2, "batch_tokens": 39, "batch_area_tokens": 40}.items():
        assert f'bert_mtl_{name}_total{{stage="0",version="7"}} {value}.0' in text


def test_rows_whose_worker_ended_between_two_steps_start_anew():
    class Forgetful(Slow):
        """Ends once it has answered the first step."""

        async def run(self, step: Step) -> list[Passed]:
            if step.stage and len(self.seen) == 1:
                raise EngineError("it has no states")
            found = await super().run(step)
            self.restarts = 1
            return found

    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        assert await asked(batcher, 1, 2) == [1, 2]
        assert workers[0].seen == [(0, [1, 2]), (0, [1, 2]), (1, [1, 2])]

    tried(story, Forgetful(stages=2))


def test_states_of_rows_that_failed_are_forgotten():
    def fault(numbers: list[int]) -> None:
        if worker.seen[-1] == (1, [1]):
            raise EngineError("bad")

    worker = Slow(fault, stages=3)

    async def story(batcher: Batcher, workers: list[Slow]) -> None:
        with pytest.raises(EngineError, match="bad"):
            await asked(batcher, 1)
        assert await asked(batcher, 2) == [2]
        assert worker.forgotten == [0]

    tried(story, worker)

"""Load on a server, and what became of its requests: closed loops, open loops, percentiles. asyncio only.

`Send` is what is loaded: anything that takes a request's number and returns a status. In a closed loop each client
asks again once it is answered, so a slow server is asked less. In an open loop requests come when they come, and a
request's latency counts from when it was due: a server that stalls makes all those wait that were due meanwhile.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np

Send = Callable[[int], Awaitable[int | str]]
"""Sends the request of a number; returns the HTTP status of its answer, or what befell it where there was none."""

UNANSWERED = "timeout"
"""The status of a request that was given up after its timeout."""

PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


class Sample(NamedTuple):
    """One request: when it was due, sent, and answered (seconds of one clock), and its status."""

    due: float
    sent: float
    done: float
    status: int | str


class Figures(NamedTuple):
    """What a time of load was like. Latencies are in milliseconds, of the requests that were answered with 200 or given
    up after their timeout; None where there are none."""

    requests: int  # that were due in the time
    requests_per_second: float  # answered with 200
    latency_ms: dict[str, float | None]  # by the names of `PERCENTILES`
    refused: int  # answered with 429
    failed: int  # with any other status than 200 and 429
    unanswered: int
    late_ms: float  # how long after they were due requests were sent, on average: the load's own delay
    statuses: dict[int | str, int]


async def closed_loop(send: Send, clients: int, seconds: float) -> list[Sample]:
    """The requests of so many clients that ask for so many seconds; returns once the last one is answered."""
    numbers, samples, end = itertools.count(), [], time.perf_counter() + seconds

    async def client() -> None:
        while (begun := time.perf_counter()) < end:
            status = await send(next(numbers))
            samples.append(Sample(begun, begun, time.perf_counter(), status))

    await asyncio.gather(*(client() for _ in range(clients)))
    return samples


async def open_loop(send: Send, rate: float, seconds: float, dice: random.Random) -> list[Sample]:
    """The requests that come at `rate` a second, independently of each other, for so many seconds; returns once the
    last one is answered. The loop's clock is of whole milliseconds, so they are sent half a one late."""
    samples: list[Sample] = []
    due = time.perf_counter()
    end = due + seconds

    async def request(number: int, due: float) -> None:
        sent = time.perf_counter()
        status = await send(number)
        samples.append(Sample(due, sent, time.perf_counter(), status))

    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            due += dice.expovariate(rate)
            if due >= end:
                break
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            group.create_task(request(number, due))
    return samples


def figures(samples: Sequence[Sample], begin: float, seconds: float) -> Figures:
    """The figures of the seconds after `begin`."""
    measured = [sample for sample in samples if begin <= sample.due < begin + seconds]
    waited = [1000 * (each.done - each.due) for each in measured if each.status in (200, UNANSWERED)]
    answered = sum(each.status == 200 and begin <= each.done < begin + seconds for each in samples)
    statuses = Counter(sample.status for sample in measured)
    words = sum(count for status, count in statuses.items() if isinstance(status, str))
    late = [1000 * (each.sent - each.due) for each in measured]
    return Figures(
        requests=len(measured),
        requests_per_second=answered / seconds,
        latency_ms={name: float(np.percentile(waited, q)) if waited else None for name, q in PERCENTILES.items()},
        refused=statuses[429],
        failed=len(measured) - statuses[200] - statuses[429] - words,
        unanswered=words,
        late_ms=float(np.mean(late)) if late else 0.0,
        statuses=dict(statuses),
    )

"""Load on a running server: `python -m serving.bench url=http://127.0.0.1:8000 clients=16`.

A step holds one number of clients (closed loop) or one rate (open loop); several steps are a ramp to saturation. Each
prints a line and adds a row to `csv`; `plot` shows all. aiohttp sends, as it takes a tenth of httpx's time: on a
machine shared with the server that time is the server's loss.
"""

import asyncio
import csv
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conf import entry
from serving.bench_config import BenchConfig
from serving.bench_texts import texts_of
from serving.load import UNANSWERED, Figures, Send, closed_loop, figures, open_loop

try:
    import aiohttp
except ImportError:  # told by `bench`, as one line
    aiohttp = None  # type: ignore[assignment]

MOST_OPEN = 1000  # connections; requests beyond wait for one, and their latency counts all the same
IDLE = 4  # seconds an unused connection is kept: less than a server waits before it closes one


class BenchError(Exception):
    """The server or a package that the load needs is not there, or the server refuses the requests."""

    user_error = True


class Step(NamedTuple):
    """One step's settings and figures; a row of `csv`."""

    load: str  # closed or open
    at: int | float  # clients, or requests a second
    texts_per_request: int
    seconds: float
    cpu_ms: float  # this process' own time on a core, a request
    figures: Figures

    @property
    def texts_per_second(self) -> float:
        return self.figures.requests_per_second * self.texts_per_request

    def row(self) -> dict[str, Any]:
        found = self.figures
        latency = {f"{name}_ms": _rounded(value) for name, value in found.latency_ms.items()}
        return {
            "load": self.load, "clients": self.at if self.load == "closed" else "",
            "rate": self.at if self.load == "open" else "", "texts_per_request": self.texts_per_request,
            "seconds": self.seconds, "requests": found.requests,
            "requests_per_second": _rounded(found.requests_per_second),
            "texts_per_second": _rounded(self.texts_per_second), **latency,
            "refused": found.refused, "failed": found.failed, "unanswered": found.unanswered,
            "late_ms": _rounded(found.late_ms), "cpu_ms": _rounded(self.cpu_ms),
            "statuses": " ".join(f"{status}:{count}" for status, count in found.statuses.items()),
        }  # fmt: skip


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 3)


def bench(config: BenchConfig) -> list[Step]:
    """Loads the server step by step; returns what was measured. Raises BenchError, and TextsError for the input."""
    if aiohttp is None:
        raise BenchError('serving.bench needs aiohttp: pip install "bert_mtl[bench]"')
    if config.plot is not None:
        from serving import bench_plot  # before the load: what is missing is told at once

        bench_plot.require()
    steps = asyncio.run(_steps(config))
    if config.plot is not None:
        bench_plot.draw(steps, Path(config.plot))
    return steps


async def _steps(config: BenchConfig) -> list[Step]:
    bodies = _bodies(config)
    async with _session(config) as session:
        url = f"{config.url.rstrip('/')}/{config.endpoint}"
        await _until_ready(session, config)
        await _first(session, url, bodies[0])
        steps: list[Step] = []
        for at in config.loads:
            steps.append(await _step(config, at, _sender(session, url, bodies, config.timeout)))
            print(_line(steps[-1], header=len(steps) == 1), flush=True)
            if config.csv is not None:
                _append(steps[-1], Path(config.csv))
            best = max((step.texts_per_second for step in steps[:-1]), default=0.0)
            if config.growth and best and steps[-1].texts_per_second < best * (1 + config.growth):
                break
    if len(steps) > 1:
        best_step = max(steps, key=lambda step: step.texts_per_second)
        unit = "clients" if best_step.load == "closed" else "requests/s offered"
        print(f"most: {best_step.texts_per_second:.1f} texts/s, at {best_step.at:g} {unit}")
    return steps


def _session(config: BenchConfig) -> "aiohttp.ClientSession":
    headers = {"content-type": "application/json"}
    if key := config.key or os.environ.get("BERT_MTL_KEY"):
        headers["authorization"] = f"Bearer {key}"
    connector = aiohttp.TCPConnector(limit=MOST_OPEN, keepalive_timeout=IDLE)
    return aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False)


def _bodies(config: BenchConfig) -> list[bytes]:
    """Those of all requests, sent in turn: every text once, in requests of equal size."""
    texts, size = texts_of(config.input, config.words, config.seed), config.texts_per_request
    chosen = {"pooling": config.pooling, "layers": config.layers}
    extra = {key: value for key, value in chosen.items() if value is not None}
    count = max(len(texts) // size, 1)
    groups = [[texts[(n * size + i) % len(texts)] for i in range(size)] for n in range(count)]
    return [json.dumps({"texts": group} | extra).encode() for group in groups]


async def _until_ready(session: "aiohttp.ClientSession", config: BenchConfig) -> None:
    """Waits for `/readyz`; a server without it counts as ready. Raises BenchError after `wait` seconds."""
    end, url = time.monotonic() + config.wait, f"{config.url.rstrip('/')}/readyz"
    while True:
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
                if response.status != 503:
                    return
                why = "answers 503"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or "does not answer"
        if time.monotonic() >= end:
            raise BenchError(f"{url}: {why}, for {config.wait:g} s")
        await asyncio.sleep(0.1)


async def _first(session: "aiohttp.ClientSession", url: str, body: bytes) -> None:
    """Raises BenchError where the server refuses what will be sent, with its reason."""
    try:
        async with session.post(url, data=body) as response:
            if response.status not in (200, 429):
                reason = (await response.read()).decode(errors="replace")[:300]
                raise BenchError(f"{url} answered {response.status}: {reason}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise BenchError(f"{url}: {str(error) or type(error).__name__}") from None


def _sender(session: "aiohttp.ClientSession", url: str, bodies: Sequence[bytes], timeout: float) -> Send:
    limit = aiohttp.ClientTimeout(total=timeout)

    async def send(number: int) -> int | str:
        try:
            async with session.post(url, data=bodies[number % len(bodies)], timeout=limit) as response:
                await response.read()
                return response.status
        except TimeoutError:
            return UNANSWERED
        except (aiohttp.ClientError, OSError) as error:
            return type(error).__name__

    return send


async def _step(config: BenchConfig, at: int | float, send: Send) -> Step:
    seconds = config.warmup + config.duration
    begin, cpu = time.perf_counter() + config.warmup, time.process_time()
    if config.rate is None:
        samples = await closed_loop(send, int(at), seconds)
    else:
        samples = await open_loop(send, at, seconds, random.Random(config.seed))
    cpu_ms = 1000 * (time.process_time() - cpu) / max(len(samples), 1)
    load = "closed" if config.rate is None else "open"
    return Step(load, at, config.texts_per_request, config.duration, cpu_ms, figures(samples, begin, config.duration))


COLUMNS = {
    "at": 8, "req/s": 9, "texts/s": 9, "p50": 8, "p90": 8, "p95": 8, "p99": 8, "max": 8, "429": 6, "failed": 7,
    "lost": 6, "cpu": 6,
}  # fmt: skip
"""Of the printed lines: latencies and this process' own time a request in milliseconds."""


def _line(step: Step, header: bool) -> str:
    found = step.figures
    latencies = ["-" if value is None else f"{value:.1f}" for value in found.latency_ms.values()]
    numbers = [f"{step.at:g}", f"{found.requests_per_second:.1f}", f"{step.texts_per_second:.1f}", *latencies]
    numbers += [str(found.refused), str(found.failed), str(found.unanswered), f"{step.cpu_ms:.2f}"]
    text = "".join(value.rjust(width) for value, width in zip(numbers, COLUMNS.values(), strict=True))
    names = {"at": "clients" if step.load == "closed" else "rate"}
    head = "".join(names.get(name, name).rjust(width) for name, width in COLUMNS.items())
    return f"{head}\n{text}" if header else text


def _append(step: Step, file: Path) -> None:
    row, fresh = step.row(), not file.exists() or file.stat().st_size == 0
    with file.open("a", newline="", encoding="utf-8") as rows:
        writer = csv.DictWriter(rows, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `--help`."""
    entry.main("bench", BenchConfig, bench, argv=argv, config_dir=entry.CONF_DIR / "texts")


if __name__ == "__main__":
    main()

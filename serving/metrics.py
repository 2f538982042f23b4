"""What the server counts: for Prometheus at `/metrics`, and second by second for the page at `/stats`."""

import resource
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = 120
"""How far back the page looks."""
WINDOW = 60
"""Seconds of which it shows latencies."""
SAMPLES = 1000
"""Latencies of a second that are kept; further ones are left out."""
disable_created_metrics()  # a series more for each counter, which nobody asks for
LATENCIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass
class Second:
    """What ended within a second, and what the queue held last."""

    time: int
    requests: int = 0
    texts: int = 0
    refused: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    queue: int = 0
    rows: int = 0
    batches: int = 0
    tokens: int = 0
    area: int = 0

    def told(self) -> dict[str, Any]:
        fill = self.tokens / self.area if self.area else None
        latencies = percentiles(self.seconds)
        counts = {name: getattr(self, name) for name in ("time", "requests", "texts", "refused", "failed", "queue")}
        return counts | latencies | {"fill": fill}


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where it has ended, or where there is no /proc."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 in milliseconds; None of nothing."""
    if not seconds:
        return dict.fromkeys(("p50", "p95", "p99"))
    ranks = np.percentile(seconds, (50, 95, 99), method="inverted_cdf")
    return {name: float(rank) * 1000 for name, rank in zip(("p50", "p95", "p99"), ranks, strict=True)}


class Metrics:
    """All counts of a server; `queue` at `/stats` is told by the versions themselves."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, labels: Sequence[str]) -> Counter:
            return Counter(name, text, labels, namespace="bert_mtl", registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["version"], namespace="bert_mtl", registry=registry)

        self.requests = counter("requests", "Requests by what became of them", ["version", "kind", "outcome"])
        self.texts = counter("texts", "Texts that were answered", ["version", "kind"])
        self.latency = Histogram(
            "request_seconds",
            "From a request to its answer",
            ["version", "kind"],
            buckets=LATENCIES,
            namespace="bert_mtl",
            registry=registry,
        )
        self.batches = counter("batches", "Batches that an engine ran", ["version", "stage"])
        self.rows = counter("batch_rows", "Rows of these batches", ["version", "stage"])
        self.tokens = counter("batch_tokens", "Tokens of these batches", ["version", "stage"])
        self.area = counter("batch_area_tokens", "The same with padding", ["version", "stage"])
        self.busy = counter("engine_seconds", "Time that engines took for them", ["version", "stage"])
        self.queue_texts = gauge("queue_texts", "Texts that are being answered")
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait for an engine")
        self.restarts = gauge("worker_restarts", "Times that workers were replaced")
        self.ready = gauge("workers_ready", "Workers that can answer")
        self.memory = gauge("workers_memory_bytes", "Memory that the workers hold (resident)")
        self.samples = counter("samples", "Sampled texts by what became of them", ["version", "outcome"])
        self.began = time.time()
        self._seconds: deque[Second] = deque(maxlen=SECONDS)

    def now(self) -> Second:
        """The second that runs."""
        second = int(time.time())
        if not self._seconds or self._seconds[-1].time < second:
            self._seconds.append(Second(second))
        return self._seconds[-1]

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def recent(self) -> dict[str, Any]:
        """The last seconds as numbers and as a series, `now` and `history` of `/stats`."""
        present = int(time.time())
        known = {each.time: each for each in self._seconds}
        whole = [known.get(second) or Second(second) for second in range(present - SECONDS, present)]
        last, window = whole[-5:], whole[-WINDOW:]

        def rate(name: str) -> float:
            return sum(getattr(each, name) for each in last) / len(last)

        area, batches = sum(each.area for each in window), sum(each.batches for each in window)
        return {
            "now": {f"{name}_per_second": rate(name) for name in ("requests", "texts", "refused", "failed")}
            | {
                "latency_ms": percentiles([each for second in window for each in second.seconds]),
                "batch": {
                    "fill": sum(each.tokens for each in window) / area if area else None,
                    "rows": sum(each.rows for each in window) / batches if batches else None,
                },
            },
            "history": [each.told() for each in whole],
        }


class VersionMetrics:
    """The counts of one version of the model."""

    def __init__(self, metrics: Metrics, version: str) -> None:
        self.metrics, self.version = metrics, version
        self.answered = 0
        """Requests that had an answer."""
        self._gauges = metrics.queue_texts, metrics.queue_tokens, metrics.ready, metrics.restarts, metrics.memory

    def request(self, kind: str, outcome: str, texts: int, seconds: float) -> None:
        """Counts a request; outcome is ok, refused, invalid, failed or cancelled."""
        metrics, second = self.metrics, self.metrics.now()
        metrics.requests.labels(self.version, kind, outcome).inc()
        if outcome == "refused":
            second.refused += 1
        elif outcome == "failed":
            second.failed += 1
        elif outcome == "ok":
            self.answered += 1
            second.requests += 1
            second.texts += texts
            if len(second.seconds) < SAMPLES:
                second.seconds.append(seconds)
            metrics.texts.labels(self.version, kind).inc(texts)
            metrics.latency.labels(self.version, kind).observe(seconds)

    def refused(self) -> None:
        """Counts a request that was refused before anybody read it."""
        self.request("any", "refused", 0, 0.0)

    def batch(self, stage: int, rows: int, tokens: int, area: int, seconds: float) -> None:
        """Counts a batch; `area` is its tokens with padding."""
        metrics, labels = self.metrics, (self.version, str(stage))
        for counter, count in zip(
            (metrics.batches, metrics.rows, metrics.tokens, metrics.area, metrics.busy),
            (1, rows, tokens, area, seconds),
            strict=True,
        ):
            counter.labels(*labels).inc(count)
        second = metrics.now()
        second.batches, second.rows = second.batches + 1, second.rows + rows
        second.tokens, second.area = second.tokens + tokens, second.area + area

    def watch(self, texts: int, tokens: int, ready: int, restarts: int, memory: int) -> None:
        """Notes the state of the queue and the workers."""
        for gauge, value in zip(self._gauges, (texts, tokens, ready, restarts, memory), strict=True):
            gauge.labels(self.version).set(value)

    def forget(self) -> None:
        """Takes the gauges of a version that has gone off the list."""
        for gauge in self._gauges:
            with suppress(KeyError):  # it was never set
                gauge.remove(self.version)

"""The server around engines of this process: what tests of its parts and protocols share."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from serving.batcher import Batcher
from serving.bundle import Bundle
from serving.config import EncodeConfig, HttpConfig, LimitsConfig, SamplesConfig
from serving.engines import Engine, open_engine
from serving.http.app import create_app
from serving.http.wire import BoundedProtocol
from serving.keys import Keys
from serving.metrics import Metrics, VersionMetrics
from serving.models import Models
from serving.samples import Samples
from serving.server import bind
from serving.service import Service
from serving.workers import Local

LIMITS = LimitsConfig(texts=50, characters=100, body=10_000, timeout=10.0)
ENCODE = EncodeConfig(pooling="mean", layers=[-1])


def local_service(
    bundle: Bundle, engines: Sequence[Engine] = (), *, version: str = "", tokens: int = 8192, queue: int = 256,
    limits: LimitsConfig = LIMITS, metrics: Metrics | None = None, samples: Samples | None = None,
) -> Service:  # fmt: skip
    """A service, not started, around engines of this process; without any, around the dummy."""
    manifest = bundle.manifest
    engines = engines or [open_engine("dummy", bundle)]
    workers = [Local(engine, manifest.heads, manifest.tokenizer.pad_id) for engine in engines]
    counts = VersionMetrics(metrics or Metrics(), version or manifest.version)
    batcher = Batcher(workers, tokens, queue, counts)
    return Service(bundle, version or manifest.version, workers, limits, ENCODE, batcher, counts, samples)


def ask(service: Service, question: Callable[[Service], Any]) -> Any:
    """What a service answers, started for this one question."""

    async def once() -> Any:
        await service.start()
        try:
            return await question(service)
        finally:
            await service.close()

    return asyncio.run(once())


def classified(service: Service, *texts: Sequence[str]) -> list[dict]:
    """The results for texts (and texts_b)."""
    return ask(service, lambda started: started.classify(*texts)).results


@contextmanager
def running(
    folder: Path, *engines: Engine, keys: Sequence[str] = (), limits: LimitsConfig = LIMITS,
    samples: SamplesConfig | None = None, **settings: Any,
) -> Iterator[str]:  # fmt: skip
    """The address of a server around the bundle (or versions) in a folder, in a thread with real uvicorn."""
    metrics, ready, ended = Metrics(), threading.Event(), threading.Event()
    kept = Samples(samples, metrics) if samples else None

    def deploy(bundle: Bundle, version: str) -> Service:
        return local_service(bundle, engines, version=version, limits=limits, metrics=metrics, samples=kept, **settings)

    with bind(HttpConfig(host="127.0.0.1", port=0, drain=5, keys=None, tls_certificate=None, tls_key=None)) as listener:

        async def serve() -> None:
            models = Models(folder, 2, deploy, metrics)
            await models.start()
            app = create_app(models, metrics, limits.body, Keys(keys))
            server = uvicorn.Server(
                uvicorn.Config(app, http=BoundedProtocol, lifespan="off", log_config=None, log_level="critical")
            )
            listener.listen()
            ready.set()
            task = asyncio.create_task(server.serve(sockets=[listener]))
            while not ended.is_set() and not task.done():
                await asyncio.sleep(0.01)
            server.should_exit = True
            await task
            await models.close()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        assert ready.wait(20)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()
            if kept:
                kept.close()

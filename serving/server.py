"""Entry point: `python -m serving.server bundle=bundles/imdb http.port=8000`.

Takes the port, starts the newest version of the model, then answers until SIGTERM or SIGINT, and ends with exit code 0
once the open requests are answered. SIGHUP looks for new versions at once.
"""

import asyncio
import errno
import json
import os
import shlex
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import uvicorn
import uvloop

from conf import entry
from conf.errors import ConfigError, Problem
from serving.batcher import Batcher
from serving.bert_as_service.bridge import ZmqBridge
from serving.bundle import Bundle
from serving.config import HttpConfig, ServeConfig
from serving.grpc_bridge import Tls, open_grpc
from serving.http.app import create_app
from serving.http.wire import BoundedProtocol
from serving.keys import Keys, read_keys
from serving.logs import log_to_stderr
from serving.metrics import Metrics, VersionMetrics
from serving.models import Models
from serving.samples import Samples
from serving.service import Service
from serving.steps import WorkerSettings
from serving.tracing import start_tracing, traced
from serving.workers import Worker

EXAMPLE = {"texts": ["A wonderful film.", "Two hours of my life I will not get back."]}
EXAMPLE_B = {"texts_b": ["What a great movie!", "It was long."]}


class AddressError(Exception):
    """The server cannot listen on the address of the configuration."""

    user_error = True

    def __init__(self, problem: Problem, error: Exception) -> None:
        super().__init__(f"{problem} {getattr(error, 'strerror', error)}.")


def serve(config: ServeConfig) -> None:
    """Serves the model; returns after a signal, when every open request has its answer."""
    log_to_stderr(config.access_log)
    # The address is taken first: a wrong one shall not cost the time the model takes to load.
    with bind(config.http) as listener:
        uvloop.run(answer(config, listener))


async def answer(config: ServeConfig, listener: socket.socket) -> None:
    """Answers on the bound socket until SIGTERM or SIGINT, then drains for at most `http.drain` seconds."""
    keys, metrics = read_keys(config.http.keys), Metrics()
    check_tls(config.http)
    if config.tracing:
        start_tracing()
    samples = Samples(config.samples, metrics) if config.samples.dir else None
    models = Models(
        config.bundle, config.versions, lambda bundle, version: deployed(bundle, version, config, metrics, samples),
        metrics,
    )  # fmt: skip
    bridge = await _bridge(models, config)
    try:
        await models.start()
    except BaseException:
        if bridge:
            bridge.close()
        raise
    app = traced(create_app(models, metrics, config.limits.body, keys))
    http = config.http
    server = uvicorn.Server(
        uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, ws="none",
            http=BoundedProtocol, timeout_graceful_shutdown=http.drain,
            ssl_certfile=http.tls_certificate, ssl_keyfile=http.tls_key,
        )
    )  # fmt: skip

    ending = asyncio.Event()

    def stop(*_: object) -> None:
        server.should_exit = True
        ending.set()  # so that all protocols drain at the same time

    # uvicorn raises the signals it drained on once more at its end; with this handler that leaves exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        listener.listen(1024)
    except OSError as error:
        raise _refused(http, error) from None
    async with (
        kept_current(models, config.reload),
        bridged(bridge, ending, stop, http.drain),
        grpc_beside(models, config, keys, ending),
    ):
        print(greeting(models.service(), listener, http.tls_certificate is not None), flush=True)
        await server.serve(sockets=[listener])
        ending.set()
    await models.close()
    if samples:
        await asyncio.to_thread(samples.close)


async def _bridge(models: Models, config: ServeConfig) -> ZmqBridge | None:
    """The bridge for bert-as-service's clients, with its ports taken."""
    if config.zmq.port is None:
        return None
    bridge = ZmqBridge(models, config.zmq, config.encode.pooling, config.encode.layers)
    ports = bridge.bind()
    print(f"bert-as-service's clients: BertClient(port={ports[0]}, port_out={ports[1]})", flush=True)
    return bridge


@asynccontextmanager
async def bridged(
    bridge: ZmqBridge | None, ending: asyncio.Event, stop: Callable[[], None], drain: float
) -> AsyncIterator[None]:
    """Runs the bridge meanwhile; its end (TERMINATION, or a fault) is the server's. From `ending` on it has `drain`
    seconds to answer what is open."""
    if bridge is None:
        yield
        return
    task = asyncio.create_task(bridge.run(), name="zmq")
    task.add_done_callback(lambda _: stop())

    async def end() -> None:
        await ending.wait()
        for seconds in (drain, 1.0):
            task.cancel()
            await asyncio.wait({task}, timeout=seconds)

    ended = asyncio.create_task(end())
    yield
    await ended
    if task.done() and not task.cancelled():
        task.result()


@asynccontextmanager
async def grpc_beside(models: Models, config: ServeConfig, keys: Keys, ending: asyncio.Event) -> AsyncIterator[None]:
    """Answers gRPC meanwhile, where its port is set; from `ending` on only what is open."""
    if config.grpc.port is None:
        yield
        return
    http = config.http
    tls = Tls(http.tls_certificate, http.tls_key) if http.tls_certificate and http.tls_key else None
    server, port = await open_grpc(models, config.grpc.host, config.grpc.port, config.limits.body, keys, tls)
    print(f"gRPC: {config.grpc.host}:{port}", flush=True)

    async def end() -> None:
        await ending.wait()
        await server.stop(http.drain)

    ended = asyncio.create_task(end())
    yield
    await ended


def deployed(bundle: Bundle, version: str, config: ServeConfig, metrics: Metrics, samples: Samples | None) -> Service:
    """The service of a bundle, not started yet."""
    tokenizer = bundle.manifest.tokenizer
    if config.max_length is not None:
        if config.max_length > tokenizer.max_length:
            rule = f"be at most {tokenizer.max_length}, which the model reads"
            raise ConfigError([Problem("max_length", rule, config.max_length)])
        shorter = tokenizer.model_copy(update={"max_length": config.max_length})
        bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"tokenizer": shorter}))
    lanes, threads = shares(len(os.sched_getaffinity(0)), config.workers, config.lanes, config.threads)
    workers = [
        Worker(WorkerSettings(bundle, config.engine, lanes, threads), config.limits.timeout)
        for _ in range(config.workers)
    ]
    counts = VersionMetrics(metrics, version)
    batcher = Batcher(workers, config.batch.tokens, config.batch.queue, counts)
    return Service(bundle, version, workers, config.limits, config.encode, batcher, counts, samples)


def shares(cores: int, workers: int, lanes: int | None, threads: int | None) -> tuple[int, int]:
    """The lanes of a worker, and the threads of each: together one a core, where nothing else is said."""
    own = max(cores // workers, 1)
    count = lanes or min(max(own // (threads or 1), 1), 4)
    return count, threads or max(own // count, 1)


@asynccontextmanager
async def kept_current(models: Models, seconds: float | None) -> AsyncIterator[None]:
    """Watches the models' folder, the queue, and SIGHUP meanwhile."""

    async def observe() -> None:
        while True:
            models.observe()
            await asyncio.sleep(1)

    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(observe())] + ([loop.create_task(models.watch(seconds))] if seconds else [])
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.append(loop.create_task(models.reload())))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def check_tls(http: HttpConfig) -> None:
    """Raises `ConfigError` where the files of TLS cannot be used, before the model is loaded."""
    if http.tls_certificate is None or http.tls_key is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(http.tls_certificate, http.tls_key)
    except OSError as error:  # ssl.SSLError too
        rule = f"be the PEM file of a certificate, and http.tls_key of its key ({error})"
        raise ConfigError([Problem("http.tls_certificate", rule, http.tls_certificate)]) from None


def bind(http: HttpConfig) -> socket.socket:
    """A socket bound to the address but not listening yet; raises `AddressError` naming the key at fault."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise AddressError(Problem("http.host", "be an address of this machine", http.host), error) from None
    listener = socket.socket(family, kind, protocol)
    # Without it a restart fails for the minute in which the old connections linger.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _refused(http, error) from None
    return listener


def _refused(http: HttpConfig, error: OSError) -> AddressError:
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return AddressError(Problem("http.port", "be free, and open to this user", http.port), error)
    return AddressError(Problem("http.host", "be an address this process may listen on", http.host), error)


def greeting(service: Service, listener: socket.socket, tls: bool = False) -> str:
    """The lines that say where the server is and how to ask it."""
    host, port = listener.getsockname()[:2]
    url = f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"
    example = EXAMPLE if service.reads(pairs=False) else EXAMPLE | EXAMPLE_B
    curl = ["curl", "-s", f"{url}/classify", "-H", "content-type: application/json", "-d", json.dumps(example)]
    first = f"{url} answers from {service.manifest.name} {service.version}; try: {shlex.join(curl)}"
    return f"{first}\na page to try it: {url}/ and all that can be asked: {url}/docs"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `--help`."""
    entry.main("serve", ServeConfig, serve, argv=argv)


if __name__ == "__main__":
    main()

"""Entry point: `python -m serving.server bundle=bundles/imdb http.port=8000`.

Takes the port, loads the bundle, warms the model up, then answers until SIGTERM or SIGINT, and ends with exit code 0
once the open requests are answered.
"""

import asyncio
import errno
import json
import shlex
import signal
import socket
from collections.abc import Sequence

import uvicorn

from conf import entry
from conf.errors import Problem
from serving.bundle import load_bundle
from serving.config import HttpConfig, ServeConfig
from serving.engines import open_engine
from serving.http import create_app
from serving.service import Service

EXAMPLE = {"texts": ["A wonderful film.", "Two hours of my life I will not get back."]}
EXAMPLE_B = {"texts_b": ["What a great movie!", "It was long."]}


class AddressError(Exception):
    """The server cannot listen on the address of the configuration."""

    user_error = True

    def __init__(self, problem: Problem, error: OSError) -> None:
        super().__init__(f"{problem} {error.strerror}.")


def serve(config: ServeConfig) -> None:
    """Serves the bundle; returns after a signal, when every open request has its answer."""
    # The address is taken first: a wrong one shall not cost the time the model takes to load.
    with bind(config.http) as listener:
        bundle = load_bundle(config.bundle)
        engine = open_engine(config.engine, bundle, config.threads)
        service = Service(bundle, engine, config.limits, config.batch.tokens)
        asyncio.run(service.warm_up())
        answer(service, listener, config)


def bind(http: HttpConfig) -> socket.socket:
    """A socket bound to the address but not listening yet; raises `AddressError` naming the key at fault."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
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


def answer(service: Service, listener: socket.socket, config: ServeConfig) -> None:
    """Answers on the bound socket until SIGTERM or SIGINT, then drains for at most `http.drain` seconds."""
    app = create_app(service, config.limits.body)
    server = uvicorn.Server(
        uvicorn.Config(
            app, lifespan="off", log_config=None, log_level="warning", access_log=False,
            timeout_graceful_shutdown=config.http.drain,
        )
    )  # fmt: skip

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signals it drained on once more at its end; with this handler that leaves exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        listener.listen()
    except OSError as error:
        raise _refused(config.http, error) from None
    print(greeting(service, listener), flush=True)
    server.run(sockets=[listener])


def _refused(http: HttpConfig, error: OSError) -> AddressError:
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return AddressError(Problem("http.port", "be free, and open to this user", http.port), error)
    return AddressError(Problem("http.host", "be an address this process may listen on", http.host), error)


def greeting(service: Service, listener: socket.socket) -> str:
    """The line that says where the server is and how to ask it."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    example = EXAMPLE if service.reads(pairs=False) else EXAMPLE | EXAMPLE_B
    curl = ["curl", "-s", f"{url}/classify", "-H", "content-type: application/json", "-d", json.dumps(example)]
    return f"{url} answers from {service.manifest.name} {service.manifest.version}; try: {shlex.join(curl)}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see `--help`."""
    entry.main("serve", ServeConfig, serve, argv=argv)


if __name__ == "__main__":
    main()

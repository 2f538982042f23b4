"""The gRPC server: TensorFlow Serving's PredictionService and ModelService, and gRPC's health, in front of the models.

It needs the extra `grpc`, whose stubs import TensorFlow: `serving.grpc_services` is imported only when it opens.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import ConfigError, Problem
from serving.keys import Keys
from serving.models import Models

if TYPE_CHECKING:
    import grpc.aio


class Tls(NamedTuple):
    """PEM files of a certificate (and its chain) and of its key."""

    certificate: Path
    key: Path


async def open_grpc(
    models: Models, host: str, port: int, body_limit: int, keys: Keys, tls: Tls | None = None
) -> "tuple[grpc.aio.Server, int]":
    """A server that answers on `host` and the returned port (for 0 a free one), until its `stop(seconds)` has drained
    it.

    Messages may have `body_limit` bytes. Raises `ConfigError` where the extra is
    missing or the address is not free.
    """
    try:
        import grpc

        from serving.grpc_services import KeyInterceptor, add_services
    except ImportError as error:
        rule = f"be null without the extra grpc (pip install 'bert_mtl[grpc]': {error})"
        raise ConfigError([Problem("grpc.port", rule, port)]) from error
    options = [
        ("grpc.max_receive_message_length", body_limit),
        ("grpc.so_reuseport", 0),  # else a port that another server has would be shared with it
    ]
    server = grpc.aio.server(interceptors=[KeyInterceptor(keys)], options=options)
    add_services(server, models)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        problem = Problem("grpc.port", "be free on grpc.host, and open to this user", port)
        raise ConfigError([problem]) from None
    await server.start()
    return server, bound

"""The gRPC server: TensorFlow Serving's PredictionService and ModelService, and gRPC's health, in front of the models.

It needs the extra `grpc`, whose stubs import TensorFlow: `serving.grpc_services` is imported only when it opens.
"""

from typing import TYPE_CHECKING

from conf.errors import ConfigError, Problem
from serving.keys import Keys
from serving.models import Models

if TYPE_CHECKING:
    import grpc.aio


async def open_grpc(
    models: Models,
    host: str,
    port: int,
    body_limit: int,
    keys: Keys,
    credentials: "grpc.ServerCredentials | None" = None,
) -> "tuple[grpc.aio.Server, int]":
    """A server that answers on `host` and the returned port (for 0 a free one), until its `stop(seconds)` has drained
    it.

    Messages may have `body_limit` bytes. With `credentials` it speaks TLS. Raises `ConfigError` where the extra is
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
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        problem = Problem("grpc.port", "be free on grpc.host, and open to this user", port)
        raise ConfigError([problem]) from None
    await server.start()
    return server, bound

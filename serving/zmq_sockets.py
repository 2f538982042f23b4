"""What ZeroMQ's sockets leave to be done: addresses checked by key, and messages received without a loss."""

import errno
import socket

import zmq
import zmq.asyncio

from conf.errors import Problem


class ZmqAddressError(Exception):
    """The server cannot listen on the address of the configuration."""

    user_error = True

    def __init__(self, problem: Problem, error: OSError | zmq.ZMQError) -> None:
        super().__init__(f"{problem} {error.strerror}.")


def bind(endpoint: zmq.asyncio.Socket, host: str, port: int, key: str) -> int:
    """The port that a socket of ZeroMQ now listens on; 0 takes any free one. Raises `ZmqAddressError`."""
    family, address = _resolved(host, port)
    endpoint.set(zmq.IPV6, int(family == socket.AF_INET6))
    name = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    try:
        endpoint.bind(f"tcp://{name}:{port or '*'}")
    except zmq.ZMQError as error:
        raise _refused(error, host, port, key) from None
    return int(endpoint.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def bound(host: str, port: int, key: str) -> socket.socket:
    """A plain socket bound to the address but not listening yet; 0 takes any free port. Raises `ZmqAddressError`."""
    family, address = _resolved(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _refused(error, host, port, key) from None
    return listener


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ZmqAddressError(Problem("zmq.host", "be an address of this machine", host), error) from None
    return family, address


def _refused(error: OSError | zmq.ZMQError, host: str, port: int, key: str) -> ZmqAddressError:
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return ZmqAddressError(Problem(key, "be free, and open to this user", port), error)
    return ZmqAddressError(Problem("zmq.host", "be an address this process may listen on", host), error)


async def receive(endpoint: zmq.asyncio.Socket) -> list[bytes]:
    """The next message; unlike a waiting receive, this loses none where it is cancelled."""
    while True:
        try:
            return await endpoint.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.Again:
            await endpoint.poll()

"""What ZeroMQ's sockets leave to be done: an address checked by key, and messages received without a loss."""

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
    """The port that the socket now listens on; 0 takes any free one. Raises `ZmqAddressError`."""
    try:
        address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0])
    except socket.gaierror as error:
        raise ZmqAddressError(Problem("zmq.host", "be an address of this machine", host), error) from None
    endpoint.set(zmq.IPV6, int(":" in address))
    try:
        endpoint.bind(f"tcp://[{address}]:{port or '*'}" if ":" in address else f"tcp://{address}:{port or '*'}")
    except zmq.ZMQError as error:
        problem = Problem("zmq.host", "be an address this process may listen on", host)
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            problem = Problem(key, "be free, and open to this user", port)
        raise ZmqAddressError(problem, error) from None
    return int(endpoint.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


async def receive(endpoint: zmq.asyncio.Socket) -> list[bytes]:
    """The next message.

    Unlike a waiting receive, this loses no message where it is cancelled; and nothing happens to the socket between
    the message's arrival and the caller's next step, on which XPUB_MANUAL depends.
    """
    while True:
        try:
            return await endpoint.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.Again:
            await endpoint.poll()

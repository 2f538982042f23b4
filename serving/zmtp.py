"""ZeroMQ's wire as a publisher speaks it to its subscribers: ZMTP 3.0 (https://rfc.zeromq.org/spec/23), mechanism NULL.

libzmq's own XPUB socket sends a message to every subscription that is a prefix of its topic, and keeps what a slow
subscriber does not take where nobody can count it. Here each connection is known, and what it subscribed to.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Protocol, cast

from serving.log_limit import OncePerSecond

Buffer = bytes | memoryview
MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
ENDS = {b"SUB", b"XSUB"}
FRAME = 4096
"""Bytes of a frame that a subscriber may send at most."""
TOPICS = 100
"""Subscriptions of one connection at most."""
ROOM = 1 << 20
"""Bytes that wait for a connection from which on it counts as full."""
HANDSHAKE = 10.0
"""Seconds in which a connection must have said what it is."""

log = logging.getLogger(__name__)
log.addFilter(OncePerSecond())


class WireError(Exception):
    """The other side does not speak as it should; the message says what it said."""


class Publisher(Protocol):
    """Is told what subscribers do."""

    def joined(self, subscriber: "Subscriber") -> bool:
        """Whether it may stay."""
        ...

    def subscribed(self, subscriber: "Subscriber", topic: bytes) -> None: ...

    def cancelled(self, subscriber: "Subscriber", topic: bytes) -> None: ...

    def has_room(self, subscriber: "Subscriber") -> None: ...

    def left(self, subscriber: "Subscriber") -> None: ...


class Subscriber(asyncio.Protocol):
    """A connection of a SUB socket; `topics` is what it has subscribed to."""

    transport: asyncio.Transport

    def __init__(self, publisher: Publisher) -> None:
        self.topics: list[bytes] = []
        self.is_full = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publisher = publisher
        self._received = bytearray()
        self._greeted = self._ready = self._inside = False

    def send(self, frames: Sequence[Buffer]) -> None:
        """Sends a message; what does not leave at once is kept, however much it is: see `is_full`."""
        parts: list[Buffer] = []
        for number, each in enumerate(frames, start=1):
            parts += [header(len(each), MORE if number < len(frames) else 0), each]
        self.transport.writelines(parts)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        self._handshake = asyncio.get_running_loop().call_later(HANDSHAKE, transport.abort)
        if not self._publisher.joined(self):
            log.warning("a subscriber was sent away: there are too many")
            return transport.abort()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        transport.set_write_buffer_limits(ROOM)
        transport.write(GREETING)

    def connection_lost(self, error: Exception | None) -> None:
        self._handshake.cancel()
        self._publisher.left(self)
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._publisher.has_room(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            self._read()
        except WireError as error:
            log.warning("a subscriber was sent away: %s", error)
            self._received.clear()
            self.transport.abort()

    def _read(self) -> None:
        if not self._greeted and not self._greet():
            return
        place = 0
        while (found := parse(self._received, place)) and not self.transport.is_closing():
            flags, body, place = found
            if flags & COMMAND:
                self._obey(body)
            elif not self._ready:
                raise WireError("a message before READY")
            else:
                is_single = not self._inside and not flags & MORE
                self._inside = bool(flags & MORE)
                if is_single and body[:1] in (b"\0", b"\1"):
                    self._follow(body[:1] == b"\1", body[1:])
        del self._received[:place]

    def _greet(self) -> bool:
        """Whether the greeting is there, wholly and as it should be."""
        got = self._received
        if got[:1] not in (b"", b"\xff") or (len(got) > 10 and (got[9:10] != b"\x7f" or got[10] < 3)):
            raise WireError(f"no ZMTP 3, but {bytes(got[:12])!r}")
        if len(got) < len(GREETING):
            return False
        if got[12:32].rstrip(b"\0") != b"NULL":
            raise WireError(f"the mechanism must be NULL; got {bytes(got[12:32])!r}")
        del got[: len(GREETING)]
        self._greeted = True
        self.transport.write(command(b"READY", property_(b"Socket-Type", b"XPUB")))
        return True

    def _obey(self, body: bytes) -> None:
        name, rest = body[1 : body[0] + 1] if body else b"", body[body[0] + 1 :] if body else b""
        if name == b"READY":
            if (kind := properties(rest).get(b"socket-type")) not in ENDS:
                raise WireError(f"the socket must be SUB; got {kind!r}")
            self._ready = True
            self._handshake.cancel()
        elif name == b"ERROR":
            raise WireError(f"it reports {rest!r}")
        elif name == b"PING":
            self.transport.write(command(b"PONG", rest[2:18]))  # behind the time to live
        elif name in (b"SUBSCRIBE", b"CANCEL") and self._ready:
            self._follow(name == b"SUBSCRIBE", rest)

    def _follow(self, comes: bool, topic: bytes) -> None:
        if comes:
            if len(self.topics) == TOPICS:
                raise WireError(f"more than {TOPICS} subscriptions")
            self.topics.append(topic)
            self._publisher.subscribed(self, topic)
        elif topic in self.topics:
            self.topics.remove(topic)
            self._publisher.cancelled(self, topic)


def parse(data: bytearray, place: int) -> tuple[int, bytes, int] | None:
    """Flags and body of the frame at a place, and where it ends; None where it is not there wholly. Raises `WireError`
    for one that is too large."""
    start = place + (9 if len(data) > place and data[place] & LONG else 2)
    if len(data) < start:
        return None
    size = int.from_bytes(data[place + 1 : start], "big")
    if size > FRAME:
        raise WireError(f"a frame of {size} bytes")
    if len(data) < start + size:
        return None
    return data[place], bytes(data[start : start + size]), start + size


def header(size: int, flags: int) -> bytes:
    """What stands before a frame's body."""
    return bytes((flags, size)) if size < 256 else bytes((flags | LONG,)) + size.to_bytes(8, "big")


def command(name: bytes, body: bytes) -> bytes:
    """A command's frame."""
    content = bytes((len(name),)) + name + body
    return header(len(content), COMMAND) + content


def property_(name: bytes, value: bytes) -> bytes:
    """A property of READY."""
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def properties(data: bytes) -> dict[bytes, bytes]:
    """The properties of READY, names in lower case; what is cut off is left out."""
    found = {}
    while data:
        name, rest = data[1 : data[0] + 1], data[data[0] + 1 :]
        size = int.from_bytes(rest[:4], "big")
        found[name.lower()], data = rest[4 : 4 + size], rest[4 + size :]
    return found

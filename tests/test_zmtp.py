"""ZeroMQ's wire of the replies, byte by byte: what subscribers may send, and what ends their connection."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from serving.zmtp import FRAME, GREETING, TOPICS, Subscriber, WireError, command, header, parse, properties, property_

READY = command(b"READY", property_(b"Socket-Type", b"SUB") + property_(b"Identity", b""))


class Events(list):
    """A publisher that notes what it is told."""

    def joined(self, subscriber: Subscriber) -> bool:
        self.subscriber = subscriber
        return True

    def subscribed(self, subscriber: Subscriber, topic: bytes) -> None:
        self.append(("subscribed", topic))

    def cancelled(self, subscriber: Subscriber, topic: bytes) -> None:
        self.append(("cancelled", topic))

    def has_room(self, subscriber: Subscriber) -> None:
        self.append(("room", b""))

    def left(self, subscriber: Subscriber) -> None:
        self.append(("left", b""))


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Events], Awaitable[None]]


def talk(conversation: Talk) -> Events:
    """What a publisher is told in a conversation over a real connection."""

    async def run() -> Events:
        events = Events()
        server = await asyncio.get_running_loop().create_server(lambda: Subscriber(events), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with asyncio.timeout(5):
            await conversation(reader, writer, events)
            writer.close()
            while ("left", b"") not in events:
                await asyncio.sleep(0.001)
        server.close()
        return events

    return asyncio.run(run())


def message(body: bytes, flags: int = 0) -> bytes:
    return header(len(body), flags) + body


def test_a_subscriber_is_greeted_heard_and_sent_messages():
    async def conversation(reader, writer, events):
        for byte in GREETING + READY + message(b"\1user1"):  # however it is cut up
            writer.write(bytes([byte]))
        assert await reader.readexactly(64) == GREETING
        ready = command(b"READY", property_(b"Socket-Type", b"XPUB"))
        assert await reader.readexactly(len(ready)) == ready
        while not events:
            await asyncio.sleep(0.001)
        events.subscriber.send([b"user1", b"x" * 300, b""])
        assert await reader.readexactly(7) == b"\1\5user1"
        assert await reader.readexactly(309) == b"\3\0\0\0\0\0\0\1\x2c" + b"x" * 300
        assert await reader.readexactly(2) == b"\0\0"
        writer.write(
            command(b"PING", b"\0\1abc") + message(b"\0user1") + command(b"SUBSCRIBE", b"b") + command(b"CANCEL", b"b")
        )
        assert await reader.readexactly(10) == b"\4\x08\4PONGabc"

    told = [("subscribed", b"user1"), ("cancelled", b"user1"), ("subscribed", b"b"), ("cancelled", b"b"), ("left", b"")]
    assert talk(conversation) == told


def test_what_is_no_subscription_is_let_be():
    async def conversation(reader, writer, events):
        parts = message(b"\1no", 1) + message(b"\1no", 1) + message(b"\1no")
        writer.write(
            GREETING + READY + message(b"") + message(b"\2no") + parts + message(b"\0never") + message(b"\1yes")
        )
        while not events:
            await asyncio.sleep(0.001)

    assert talk(conversation) == [("subscribed", b"yes"), ("left", b"")]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(9) + b"\3",
        GREETING[:10] + b"\1" + GREETING[11:],
        GREETING.replace(b"NULL", b"PLAIN"),
        GREETING + message(b"\1a"),
        GREETING + command(b"READY", property_(b"Socket-Type", b"PULL")),
        GREETING + command(b"READY", b"\xff"),
        GREETING + READY + command(b"ERROR", b"no"),
        GREETING + READY + header(FRAME + 1, 0),
        GREETING + READY + b"\2" + b"\xff" * 8,
        GREETING + READY + b"".join(message(b"\1%d" % number) for number in range(TOPICS + 1)),
    ],
)
def test_a_connection_that_does_not_keep_to_the_wire_ends(sent):
    async def conversation(reader, writer, events):
        writer.write(sent)
        try:
            while await reader.read(1000):
                pass
        except ConnectionResetError:
            pass

    assert talk(conversation)[-1] == ("left", b"")


def test_random_bytes_after_the_greeting_raise_nothing_but_wire_errors():
    chance = random.Random(1)
    ended = 0
    for _ in range(3000):
        data = bytearray(chance.randbytes(chance.randrange(60)))
        place = 0
        try:
            while found := parse(data, place):
                flags, body, place = found
                properties(body)
                assert place <= len(data) and 0 <= flags < 256
        except WireError:
            ended += 1
    assert ended > 100


def test_a_subscriber_that_does_not_read_is_full_until_it_does():
    async def conversation(reader, writer, events):
        writer.write(GREETING + READY + message(b"\1a"))
        while not events:
            await asyncio.sleep(0.001)
        sent = 0
        while not events.subscriber.is_full:
            events.subscriber.send([b"a", bytes(1 << 20)])
            sent += 1
        await reader.readexactly(64 + len(command(b"READY", property_(b"Socket-Type", b"XPUB"))))
        for _ in range(sent):
            await reader.readexactly(3 + 9 + (1 << 20))
        assert not events.subscriber.is_full

    assert talk(conversation) == [("subscribed", b"a"), ("room", b""), ("left", b"")]

"""Replies to the clients of bert-as-service: each goes to the subscribers of its identity, and to nobody else.

ZeroMQ matches prefixes: `user1` would receive the replies of `user10` too, and its client, which looks at the request
id alone, would take them for its own. Here an identity is one client's (`serving.zmtp` knows who subscribed to what).
"""

import asyncio
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from serving import zmq_frames
from serving.errors import ServingError
from serving.log_limit import OncePerSecond
from serving.zmq_config import HeldConfig
from serving.zmq_frames import Buffer
from serving.zmtp import Subscriber

LENGTH = 255
"""Bytes of an identity at most."""
REFUSALS = 256
"""Errors that are held; they have a place of their own, so that faulty requests push out no answer."""
OVERHEAD = 1024
"""Bytes that a held reply counts beside its frames."""
CONNECTIONS = 1000
"""Subscribers at most."""
PULSE = 0.05
"""Seconds between two looks for what is late."""

log = logging.getLogger(__name__)
log.addFilter(OncePerSecond())


class NotTaken(ServingError):
    """A reply waited for its client in vain."""


@dataclass
class Reply:
    """Frames behind the identity; `request_id` is the last of them."""

    frames: Sequence[Buffer]
    since: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        return OVERHEAD + sum(map(len, self.frames))

    @property
    def request_id(self) -> bytes:
        return bytes(self.frames[-1])


class Held:
    """Replies that cannot leave yet, by identity, bounded in number and bytes.

    Where they are too many, the identity that holds the most gives way: its last answer becomes a (small) error, so
    that its client learns of it, or its oldest reply goes.
    """

    def __init__(self, replies: int, size: int) -> None:
        self.limit, self.size_limit = replies, size
        self.count = self.size = 0
        self.queues: dict[bytes, deque[Reply]] = {}
        self._sizes: Counter[bytes] = Counter()

    def add(self, identity: bytes, reply: Reply) -> None:
        self.queues.setdefault(identity, deque()).append(reply)
        self._count(identity, 1, reply.size)
        while self.count > self.limit or self.size > self.size_limit:
            self._give_way()

    def pop(self, identity: bytes) -> Reply:
        """Takes out the oldest reply to an identity."""
        queue = self.queues[identity]
        reply = queue.popleft()
        self._count(identity, -1, -reply.size)
        if not queue:
            del self.queues[identity], self._sizes[identity]
        return reply

    def _count(self, identity: bytes, replies: int, size: int) -> None:
        self.count += replies
        self.size += size
        self._sizes[identity] += size

    def _give_way(self) -> None:
        identity = max(self._sizes, key=self._sizes.__getitem__)
        queue = self.queues[identity]
        largest = max(range(len(queue)), key=lambda place: (queue[place].size, place))
        reply = queue[largest]
        fault = NotTaken("the client takes its replies too slowly, and the server can keep no more of them")
        small = Reply(zmq_frames.error(fault, reply.request_id), reply.since)
        if self.count <= self.limit and small.size < reply.size:
            queue[largest] = small
            self._count(identity, 0, small.size - reply.size)
            log.warning("a reply to %r became an error: its client is too slow", identity[:40])
        else:
            self.pop(identity)
            log.warning("a reply to %r was dropped: too many are held", identity[:40])


class Outbox:
    """Sends replies to those who subscribed to their identity; holds those whose client has not, or is slow.

    Args:
        left: is called with the identity of a client that has been away for `config.seconds`.
    """

    def __init__(self, config: HeldConfig, left: Callable[[bytes], None]) -> None:
        self._seconds, self._on_left = config.seconds, left
        self._answers, self._refusals = Held(config.replies, config.bytes), Held(REFUSALS, config.bytes)
        self._connections: set[Subscriber] = set()
        self._subscribers: dict[bytes, list[Subscriber]] = {}
        self._left: dict[bytes, float] = {}
        self._care = asyncio.Event()  # that something is held, or somebody has left

    async def listen(self, listener: socket.socket) -> asyncio.Server:
        """Lets subscribers in at a bound socket."""
        return await asyncio.get_running_loop().create_server(lambda: Subscriber(self), sock=listener)

    def send(self, identity: bytes, frames: Sequence[Buffer], refusal: bool = False) -> None:
        """Sends a reply, or holds it."""
        if not 0 < len(identity) <= LENGTH:
            log.warning("no reply to %r: an identity must have 1 to %d bytes", identity[:40], LENGTH)
            return
        held = self._refusals if refusal else self._answers
        reply = Reply(frames)
        if identity in held.queues or not self._sent(identity, reply):
            held.add(identity, reply)
            self._care.set()

    def _sent(self, identity: bytes, reply: Reply) -> bool:
        """Whether a subscriber could take it. Where there are several, those that are full go without: one may be the
        rest of a connection that broke."""
        able = [each for each in self._subscribers.get(identity, ()) if not each.is_full]
        for each in able:
            each.send([identity, *reply.frames])
        return bool(able)

    def _flush(self, identity: bytes) -> None:
        for held in (self._answers, self._refusals):
            while identity in held.queues and self._sent(identity, held.queues[identity][0]):
                held.pop(identity)

    # What subscribers do (`zmtp.Publisher`)

    def joined(self, subscriber: Subscriber) -> bool:
        self._connections.add(subscriber)
        return len(self._connections) <= CONNECTIONS

    def subscribed(self, subscriber: Subscriber, topic: bytes) -> None:
        self._subscribers.setdefault(topic, []).append(subscriber)
        self._left.pop(topic, None)
        self._flush(topic)

    def cancelled(self, subscriber: Subscriber, topic: bytes) -> None:
        self._subscribers[topic].remove(subscriber)
        if not self._subscribers[topic]:
            del self._subscribers[topic]
            self._left[topic] = time.monotonic()
            self._care.set()

    def has_room(self, subscriber: Subscriber) -> None:
        for topic in subscriber.topics:
            self._flush(topic)

    def left(self, subscriber: Subscriber) -> None:
        self._connections.discard(subscriber)
        for topic in subscriber.topics:
            self.cancelled(subscriber, topic)

    # Time

    async def tend(self) -> None:
        """Drops what has waited too long for a subscriber."""
        while True:
            await self._care.wait()
            late = time.monotonic() - self._seconds
            for held in (self._answers, self._refusals):
                for identity in [each for each in held.queues if each not in self._subscribers]:
                    while identity in held.queues and held.queues[identity][0].since < late:
                        held.pop(identity)
                        log.warning("a reply to %r was dropped: nobody subscribed to it", identity[:40])
            for identity in [each for each, since in self._left.items() if since < late]:
                del self._left[identity]
                self._on_left(identity)
            if not (self._answers.queues or self._refusals.queues or self._left):
                self._care.clear()
            await asyncio.sleep(PULSE)

    async def close(self, seconds: float) -> None:
        """Gives subscribers that long to take what they have been sent, and what is held for them."""
        open_ = list(self._connections)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(
                    each in self._subscribers for held in (self._answers, self._refusals) for each in held.queues
                ):
                    await asyncio.sleep(PULSE)
                for each in open_:
                    each.transport.close()  # once its buffer is empty
                await asyncio.gather(*(asyncio.shield(each.gone) for each in open_))
        for each in open_:
            each.transport.abort()

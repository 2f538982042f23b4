"""Replies to the clients of bert-as-service: each goes to the subscribers of its identity, and to nobody else.

A subscription matches every topic that begins with it, so `user1` would receive the replies of `user10`, and its
client, which looks at the request id alone, would take them for its own. The socket therefore leaves subscriptions to
this module (XPUB_MANUAL), which enters a topic of its own for each: see `topic`.
"""

import asyncio
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq
import zmq.asyncio

from serving import zmq_frames
from serving.errors import ServingError
from serving.log_limit import OncePerSecond
from serving.zmq_config import HeldConfig
from serving.zmq_frames import Buffer
from serving.zmq_sockets import receive

END = b"\0end"
"""Behind an identity that a client chose itself: it begins with none of its own bytes."""
UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LENGTH = 255
"""Bytes of an identity at most."""
REFUSALS = 256
"""Errors that are held; they have a place of their own, so that faulty requests push out no answer."""
OVERHEAD = 1024
"""Bytes that a held reply counts beside its frames."""
LARGE = 1 << 20
"""Bytes of a frame from which on the next such reply to its client waits until this one has left: libzmq counts
replies on their way to a slow client, not their bytes."""
PULSE = 0.02
"""Seconds after which a full or late subscriber is tried again."""

log = logging.getLogger(__name__)
log.addFilter(OncePerSecond())


def topic(identity: bytes) -> bytes | None:
    """The first frame of an identity's replies; None for one that cannot be told from others.

    It begins with the identity, as the client's own socket filters by it; and no topic begins with another one's. A
    UUID (the client's default) stands for itself, as none is the beginning of another.
    """
    if UUID.fullmatch(identity):
        return identity
    if not identity or len(identity) > LENGTH or END in identity or UUID.match(identity):
        return None
    return identity + END


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
    def is_large(self) -> bool:
        return any(len(each) > LARGE for each in self.frames)

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
            log.warning("a reply to %r became an error: its client is too slow", identity)
        else:
            self.pop(identity)
            log.warning("a reply to %r was dropped: too many are held", identity)


class Outbox:
    """Sends replies through an XPUB socket (not bound yet) and holds those whose client has not subscribed, or is slow.

    Args:
        left: is called with the identity of a client that has been away for `config.seconds`.
    """

    def __init__(self, socket: zmq.asyncio.Socket, config: HeldConfig, left: Callable[[bytes], None]) -> None:
        socket.set(zmq.XPUB_MANUAL, 1)
        socket.set(zmq.XPUB_NODROP, 1)  # a full subscriber is told (EAGAIN) instead of losing replies
        self._socket, self._seconds, self._on_left = socket, config.seconds, left
        self._answers, self._refusals = Held(config.replies, config.bytes), Held(REFUSALS, config.bytes)
        self._subscribed: Counter[bytes] = Counter()
        self._left: dict[bytes, float] = {}
        self._leaving: dict[bytes, list[zmq.MessageTracker]] = {}
        self._care = asyncio.Event()  # that something is held, or somebody has left

    async def send(self, identity: bytes, frames: Sequence[Buffer], refusal: bool = False) -> None:
        """Sends a reply, or holds it; never waits."""
        if topic(identity) is None:
            log.warning(
                "no reply to %r: an identity must have 1 to %d bytes, and not be a UUID and more", identity[:40], LENGTH
            )
            return
        held = self._refusals if refusal else self._answers
        reply = Reply(frames)
        if identity in held.queues or not await self._sent(identity, reply):
            held.add(identity, reply)
            self._care.set()

    async def _sent(self, identity: bytes, reply: Reply) -> bool:
        if identity not in self._subscribed or (reply.is_large and not self._has_left(identity)):
            return False
        frames = [zmq.Frame(each, copy=False, track=True) if len(each) > LARGE else each for each in reply.frames]
        try:
            await self._socket.send_multipart([topic(identity), *frames], flags=zmq.DONTWAIT)
        except zmq.Again:
            return False
        if reply.is_large:
            self._leaving[identity] = [each.tracker for each in frames if isinstance(each, zmq.Frame)]
        return True

    def _has_left(self, identity: bytes) -> bool:
        """Whether libzmq is done with the last large reply to a client."""
        return all(tracker.done for tracker in self._leaving.get(identity, ()))

    async def _flush(self, identity: bytes) -> None:
        for held in (self._answers, self._refusals):
            while identity in held.queues and await self._sent(identity, held.queues[identity][0]):
                held.pop(identity)

    async def listen(self) -> None:
        """Follows who subscribes and who leaves."""
        while True:
            frames = await receive(self._socket)
            if len(frames) == 1 and frames[0][:1] in (b"\0", b"\1"):
                await self._follow(frames[0][:1] == b"\1", frames[0][1:])
            await asyncio.sleep(0)  # what is there already is received without a pause

    async def _follow(self, comes: bool, identity: bytes) -> None:
        name = topic(identity)
        if name is None:
            return
        # For the connection that the last message came from. libzmq forgets which where it has handled anything in
        # between (4.3.5: another's end), hence at once after `receive`.
        self._socket.set(zmq.SUBSCRIBE if comes else zmq.UNSUBSCRIBE, name)
        if comes:
            self._subscribed[identity] += 1
            self._left.pop(identity, None)
            await self._flush(identity)
        elif self._subscribed[identity] > 1:
            self._subscribed[identity] -= 1
        else:
            del self._subscribed[identity]
            self._leaving.pop(identity, None)
            self._left[identity] = time.monotonic()
            self._care.set()

    async def tend(self) -> None:
        """Tries slow subscribers again, and drops what has waited too long for one."""
        while True:
            await self._care.wait()
            late = time.monotonic() - self._seconds
            for held in (self._answers, self._refusals):
                for identity in list(held.queues):
                    await self._flush(identity)
                    self._drop_late(held, identity, late)
            for identity in [each for each, since in self._left.items() if since < late]:
                del self._left[identity]
                self._on_left(identity)
            if not (self._answers.queues or self._refusals.queues or self._left):
                self._care.clear()
            await asyncio.sleep(PULSE)

    def _drop_late(self, held: Held, identity: bytes, late: float) -> None:
        while identity not in self._subscribed and identity in held.queues and held.queues[identity][0].since < late:
            held.pop(identity)
            log.warning("a reply to %r was dropped: nobody subscribed to it", identity)

    @property
    def waits(self) -> bool:
        """Whether a reply is held for somebody who is there."""
        return any(identity in self._subscribed for held in (self._answers, self._refusals) for identity in held.queues)

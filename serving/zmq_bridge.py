"""bert-as-service's clients (bert-serving-client 1.10.0) over ZeroMQ: requests come in at one port, replies leave at
another.

`serving.zmq_frames` has the messages, `serving.zmq_outbox` the way of the replies, `serving.zmq_status` the commands.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

import zmq
import zmq.asyncio

from serving import zmq_frames
from serving.errors import NotReady
from serving.log_limit import OncePerSecond
from serving.models import Models
from serving.zmq_answers import TextVectors, aside
from serving.zmq_config import ZmqConfig
from serving.zmq_frames import Request
from serving.zmq_outbox import Outbox
from serving.zmq_sockets import ZmqAddressError, bind, bound, receive
from serving.zmq_status import Description, Statistic

WAITING = 4
"""Requests of one connection that libzmq receives ahead."""
HARD = 2
"""Times `frame` from which on a frame ends its connection: libzmq then takes no memory for it, and says nothing."""
REST = 1000
"""Requests at most that are refused at the end."""
LINGER = 1.0
"""Seconds in which the last replies must have left."""

log = logging.getLogger(__name__)
log.addFilter(OncePerSecond())


class ZmqBridge:
    """Answers bert-as-service's clients from `models`.

    Args:
        pooling, layers: the server's `encode.pooling` and `encode.layers`, which clients are told.
    """

    def __init__(self, models: Models, config: ZmqConfig, pooling: str, layers: Sequence[int]) -> None:
        self._models, self._config = models, config
        self._pooling, self._layers = config.pooling or pooling, layers
        self._vectors = TextVectors(models, config)
        self._statistic = Statistic()
        self._outbox = Outbox(config.held, self._forget)
        self._open: dict[asyncio.Task[None], Request] = {}
        self._landed = asyncio.Event()

    def bind(self) -> tuple[int, int]:
        """Takes both ports, and says which; raises `ZmqAddressError`. Requests wait until `run`."""
        config = self._config
        self._context = zmq.asyncio.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.set(zmq.MAXMSGSIZE, HARD * config.frame)
        self._inbox.set(zmq.RCVHWM, WAITING)
        self._inbox.set(zmq.TCP_KEEPALIVE, 1)
        self._inbox.set(zmq.LINGER, 0)
        try:
            port = bind(self._inbox, config.host, config.port or 0, "zmq.port")
            self._listener = bound(config.host, config.out, "zmq.port_out")
        except ZmqAddressError:
            self._context.destroy()
            raise
        ports = port, self._listener.getsockname()[1]
        self._description = Description(config, self._pooling, self._layers, ports)
        return ports

    async def run(self) -> None:
        """Answers until it is cancelled (or told to end by TERMINATION, where `terminate` allows it), then answers
        what is open. A second cancellation ends that too.

        Raises `Refused` where the model has no head for `pooling`.
        """
        try:
            self._check()
            server = await self._outbox.listen(self._listener)
            try:
                await self._serve()
            finally:
                server.close()
                await self._outbox.close(LINGER)
        finally:
            self.close()

    def close(self) -> None:
        """Gives the ports back; what ran does so itself."""
        self._listener.close()
        self._context.destroy()

    async def _serve(self) -> None:
        receiving = asyncio.create_task(self._receive(), name="zmq requests")
        tending = asyncio.create_task(self._outbox.tend(), name="zmq replies")
        try:
            done, _ = await asyncio.wait([receiving, tending], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            receiving.cancel()
            try:
                await self._drain()
            finally:
                for task in (tending, *self._open):
                    task.cancel()
                await asyncio.gather(receiving, tending, *self._open, return_exceptions=True)

    def _check(self) -> None:
        if self._config.pooling is not None:
            with suppress(NotReady):
                self._vectors.head(self._models.service())

    # Requests in

    async def _receive(self) -> None:
        while True:
            await self._room()
            frames = await receive(self._inbox)
            try:
                if self._take(frames):
                    return
            except Exception as error:  # of whatever kind: one request shall not end the loop
                self._refuse(frames, error)
            await asyncio.sleep(0)  # what is there already is received without a pause

    async def _room(self) -> None:
        """Returns once another request may be received: others wait with libzmq, and then with their clients."""
        config = self._config
        while (
            len(self._open) >= config.requests
            or sum(len(request.content) for request in self._open.values()) > 4 * config.frame
        ):
            self._landed.clear()
            await self._landed.wait()

    def _take(self, frames: Sequence[bytes]) -> bool:
        """Begins to answer; whether the server shall end."""
        request = zmq_frames.parse(frames, self._config.frame)
        if request.content in zmq_frames.COMMANDS:
            self._statistic.command(request.identity)
            return self._obey(request)
        task = asyncio.create_task(self._answer(request), name="zmq request")
        self._open[task] = request
        task.add_done_callback(self._land)
        return False

    def _land(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        self._landed.set()

    def _forget(self, identity: bytes) -> None:
        """Ends the requests of a client that has left."""
        for task, request in self._open.items():
            if request.identity == identity:
                task.cancel()

    def _obey(self, request: Request) -> bool:
        if request.content == zmq_frames.TERMINATION:
            if not self._config.terminate:
                log.warning("TERMINATION of %r is ignored; zmq.terminate=true would allow it", request.identity[:40])
            return self._config.terminate
        try:
            service = self._models.service()
        except NotReady:
            service = None
        content = self._description.of(request.identity, service)
        if request.content == zmq_frames.SHOW_STATUS:
            content["statistic"] = self._statistic.told()
        self._outbox.send(request.identity, zmq_frames.config(content, request.id))
        return False

    def _refuse(self, frames: Sequence[bytes], fault: Exception) -> None:
        """Answers an error, by what the frames say of whom to answer."""
        identity, request_id = frames[0], zmq_frames.request_id(frames)
        if zmq_frames.is_refusal(fault):
            log.info("request refused: %s", fault)
        else:
            log.error("request failed: %s", fault, exc_info=fault)
        self._outbox.send(identity, zmq_frames.error(fault, request_id), refusal=True)

    # Replies out

    async def _answer(self, request: Request) -> None:
        try:
            texts = await aside(len(request.content), zmq_frames.read_texts, request.content, request.count)
            self._statistic.request(request.identity, len(texts))
            array, tokens = await self._vectors.of(texts)
            frames = await aside(array.nbytes, zmq_frames.answer, array, tokens, request.id)
        except Exception as error:  # of whatever kind: the client waits for an answer
            self._refuse([request.identity, b"", request.id], error)
        else:
            self._outbox.send(request.identity, frames)

    async def _drain(self) -> None:
        self._inbox.unbind(self._inbox.get_string(zmq.LAST_ENDPOINT))
        with suppress(zmq.Again):  # what libzmq has received already would be lost unsaid
            for _ in range(REST):
                frames = await self._inbox.recv_multipart(flags=zmq.DONTWAIT)
                self._refuse(frames, NotReady("the server ends; ask again"))
        while self._open:
            await asyncio.wait(self._open)

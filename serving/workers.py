"""Worker processes from their server's side: started, asked, watched, and replaced when they end."""

import asyncio
import itertools
import logging
import os
import pickle
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

from serving.engines import Engine
from serving.errors import EngineError
from serving.heads import Head
from serving.stages import Runner
from serving.steps import SIZE, Failed, Numbered, Opened, Passed, Step, WorkerSettings, packed

log = logging.getLogger(__name__)

START = 120.0
"""Seconds that an engine gets to open."""
LONGEST_PAUSE = 10.0
"""Seconds between two attempts to replace a worker, at most."""


class WorkerLost(Exception):
    """The worker ended, or no longer answers, before it had answered a step."""


class Worker:
    """One worker. Between `start` and `close` there is a process, or one is on its way.

    Args:
        patience: seconds after which one that does not answer a step is taken for lost.
    """

    def __init__(self, settings: WorkerSettings, patience: float) -> None:
        self.settings, self.patience = settings, patience
        self.restarts = 0
        self.opened: Opened
        self.process: asyncio.subprocess.Process | None = None
        self._works = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._replies: dict[int, asyncio.Future[object]] = {}

    @property
    def lanes(self) -> int:
        """Steps that can run side by side."""
        return self.settings.lanes

    @property
    def is_ready(self) -> bool:
        """Whether the process is there and its engine open."""
        return self._works.is_set()

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    async def start(self) -> None:
        """Returns once the engine answers. Raises `EngineError` where it cannot."""
        await self._open()
        self._keeper = asyncio.create_task(self._keep(), name="keeper of a worker")

    async def ready(self) -> None:
        """Returns once the engine answers (again)."""
        while not self._works.is_set():  # it may have ended again before this goes on
            await self._works.wait()

    async def run(self, step: Step) -> list[Passed]:
        """What the worker found for each row of the step; `lanes` steps can run side by side.

        Raises `EngineError` where the model failed, `WorkerLost` where the worker did.
        """
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(packed(Numbered(number, step)))
            await self._writer.drain()
            found = await asyncio.wait_for(reply, self.patience)
        except (OSError, EOFError, TimeoutError) as error:
            self._kill()
            raise WorkerLost(f"worker {self.pid} was lost: {type(error).__name__}") from error
        finally:
            self._replies.pop(number, None)
        if isinstance(found, Failed):
            raise EngineError(found.message)
        assert isinstance(found, list)
        return found

    async def close(self) -> None:
        """Ends the process."""
        for task in filter(None, (self._keeper, self._listener)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._works.clear()
        if self.process:
            self._writer.close()
            self._kill()
            await self.process.wait()

    async def _open(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.worker", str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            self._writer.write(packed(self.settings))
            opened = await asyncio.wait_for(self._read(), START)
        except (OSError, EOFError, TimeoutError) as error:
            self._kill()
            raise EngineError(f"engine {self.settings.engine} did not open: its process ended or hung") from error
        if isinstance(opened, Failed):
            raise EngineError(opened.message)
        assert isinstance(opened, Opened)
        self.opened = opened
        self._listener = asyncio.create_task(self._listen(), name="replies of a worker")
        self._works.set()

    async def _read(self) -> object:
        try:
            size = SIZE.unpack(await self._reader.readexactly(SIZE.size))[0]
            return pickle.loads(await self._reader.readexactly(size))
        except asyncio.IncompleteReadError as error:
            raise EOFError from error

    async def _listen(self) -> None:
        """Hands replies out, until the socket closes."""
        try:
            while True:
                reply = await self._read()
                assert isinstance(reply, Numbered)
                if (waits := self._replies.get(reply.number)) and not waits.done():
                    waits.set_result(reply.content)
        except (OSError, EOFError) as error:
            self._works.clear()
            for waits in self._replies.values():
                if not waits.done():
                    waits.set_exception(EOFError(str(error)))

    async def _keep(self) -> None:
        """Replaces the process whenever it ends."""
        while True:
            assert self.process
            code = await self.process.wait()
            self._works.clear()
            self._writer.close()
            log.error("worker %s ended with code %s and is replaced", self.pid, code)
            pause = 0.0
            while not self._works.is_set():
                await asyncio.sleep(pause)
                self.restarts += 1
                try:
                    await self._open()
                except (EngineError, OSError) as error:  # OSError: no process or socket is to be had just now
                    log.error("a worker could not be replaced: %s", error)
                    pause = min(2 * pause + 0.5, LONGEST_PAUSE)

    def _kill(self) -> None:
        if self.process and self.process.returncode is None:
            self.process.kill()


class Local:
    """An engine of this very process in the place of a worker: for benchmarks and tests of what surrounds one."""

    is_ready, restarts, pid, lanes = True, 0, os.getpid(), 1

    def __init__(self, engine: Engine, heads: Mapping[str, Head], pad_id: int) -> None:
        self.runner = Runner(engine, heads, pad_id)
        able = any(stage.layers for stage in engine.stages)
        self.opened = Opened(engine.name, "fp32", engine.stages, (engine.name, engine.stages) if able else None)

    async def start(self) -> None: ...

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    async def run(self, step: Step) -> list[Passed]:
        """What the engine found, computed in a thread. Raises `EngineError`."""
        try:
            return await asyncio.to_thread(self.runner.run, step)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error

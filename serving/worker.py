"""A process that has an engine and runs the steps that come through a socket: `python -m serving.worker`.

`serving.workers` starts it. It ends when the socket closes, so none outlives its server.
"""

import functools
import logging
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from serving.bundle import Bundle, StageFiles, check_files
from serving.engines import Engine, EngineName, for_vectors, open_engine
from serving.errors import EngineError
from serving.logs import log_to_stderr
from serving.rows import Row, pad
from serving.stages import Runner, check_outputs
from serving.steps import SIZE, Failed, Numbered, Opened, Passed, Step, WorkerSettings, packed

log = logging.getLogger(__name__)


def main() -> None:
    """Takes the socket's number; what to open comes through it."""
    # Ctrl+C reaches every process of the terminal: the server drains first, and its end closes the socket.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    with connection, connection.makefile("rb") as messages:
        settings: WorkerSettings = received(messages)
        bundle = settings.bundle
        try:
            check_files(bundle)
            engine = opened(bundle, settings, settings.engine)
        except Exception as error:  # of the runtime's own types too
            connection.sendall(packed(Failed(str(error))))
            return
        precision = "fp32" if engine.name == "dummy" else bundle.manifest.engines[engine.name].precision
        runner = Runner(engine, bundle.manifest.heads, bundle.manifest.tokenizer.pad_id)
        vectors = for_vectors(settings.engine, engine.name, bundle)
        stages: Sequence[StageFiles] = engine.stages
        if vectors not in (None, engine.name):
            runner.vectors = once(lambda: opened(bundle, settings, vectors))
            stages = bundle.manifest.engines[vectors].stages
        told = None if vectors is None else (vectors, stages)
        connection.sendall(packed(Opened(engine.name, precision, engine.stages, told)))
        reading, writing = threading.Lock(), threading.Lock()

        def lane() -> None:
            """Runs the next step, whichever it is, until the socket is closed."""
            while True:
                with reading:
                    if (step := received(messages)) is None:
                        return
                found = packed(Numbered(step.number, answered(runner, step.content)))
                with writing:
                    connection.sendall(found)

        threads = [threading.Thread(target=lane) for _ in range(settings.lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def once(make: Callable[[], Engine]) -> Callable[[], Engine]:
    """Makes an engine when it is first asked for: one, however many lanes ask at once."""
    made, making = functools.cache(make), threading.Lock()

    def get() -> Engine:
        with making:
            return made()

    return get


def received(messages: BinaryIO) -> Any:
    """The next message; None once the socket is closed."""
    size = messages.read(SIZE.size)
    return pickle.loads(messages.read(SIZE.unpack(size)[0])) if size else None


def opened(bundle: Bundle, worker: WorkerSettings, name: EngineName) -> Engine:
    """The engine, warm: a long and a short row went through all its stages.

    Raises `EngineError` where the model does not answer as its manifest says.
    """
    engine = open_engine(name, bundle, worker.threads, worker.lanes)
    settings = bundle.manifest.tokenizer
    for length in (settings.max_length, 8):
        row = Row(np.full(length, settings.pad_id, np.int32), False)
        for outputs in engine.predict(pad([row], settings.pad_id)._asdict()):
            check_outputs(outputs, bundle.manifest.heads, 1, length)
    return engine


def answered(runner: Runner, step: Step) -> list[Passed] | Failed:
    """What the engine found for the step, or why it failed."""
    try:
        return runner.run(step)
    except EngineError as error:
        return Failed(str(error))
    except Exception as error:  # of the runtime's own types
        log.exception("stage %d with %d rows", step.stage, len(step.items))
        return Failed(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    log_to_stderr(requests=False)
    main()

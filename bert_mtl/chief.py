"""The chief among the workers of a training: it alone writes the run's folder, and what it finds all go on with."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

GONE = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)

BLOCK, LENGTH = 4096, 12  # bytes told at once; digits of a length


class WorkerError(Exception):
    """Another worker of the training has stopped."""

    user_error = True


class Chief:
    """The chief of `strategy`, as each of its workers knows it; a training in one process is its own.

    Attributes:
        rank: the place of this process among the `workers`; the chief's is 0.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        resolver = strategy.cluster_resolver if strategy is not None else None
        self.strategy: Any = strategy
        self.workers: list[str] = resolver.cluster_spec().as_dict()["worker"] if resolver else [""]
        self.rank: int = resolver.task_id if resolver else 0
        if not self.here:
            _leave_log_files()

    @property
    def here(self) -> bool:
        """Whether this process is the chief."""
        return self.rank == 0

    def does(self, work: Callable[[], Any]) -> Any:
        """What `work()` returned on the chief, through JSON, on every worker. All wait for it here.

        Raises:
            WorkerError: on the others, where it failed on the chief.
        """
        if len(self.workers) == 1:
            return work()
        told, failure = {}, None
        if self.here:
            try:
                told["value"] = work()
            except Exception as error:  # whatever it is, the others must not wait for what never comes
                told["error"], failure = f"{error or type(error).__name__}", error
        told = json.loads(self._tell(json.dumps(told).encode()))
        if failure is not None:
            raise failure
        if "error" in told:
            raise WorkerError(f"the chief, {self._name(0)}, has stopped: {told['error']}")
        return told["value"]

    @contextmanager
    def company(self, advice: str) -> Iterator[None]:
        """Inside, a worker that goes away ends the others with its name and `advice`, not with a trace of TensorFlow.

        TensorFlow sees it by its closed connections, or by 10 seconds without a heartbeat, and aborts the sums.
        """
        try:
            yield
        except GONE as error:
            if len(self.workers) == 1:
                raise
            ranks = sorted({int(rank) for rank in re.findall(r"/task:(\d+)", error.message)} - {self.rank})
            told = ", ".join(map(self._name, ranks)) or "another worker"
            raise WorkerError(f"all workers must be there until the end; {told} has gone. {advice}") from error

    def _name(self, rank: int) -> str:
        return f"worker {rank} ({self.workers[rank]})"

    def _tell(self, text: bytes) -> bytes:
        """The chief's `text`, block by block, behind its length."""
        text = b"%*d" % (LENGTH, len(text)) + text
        told = self._block(text[:BLOCK])
        size = LENGTH + int(told[:LENGTH])
        while len(told) < size:
            told += self._block(text[len(told) : len(told) + BLOCK])
        return told[LENGTH:size]

    def _block(self, text: bytes) -> bytes:
        """The chief's block, as a sum to which the others give zeros."""
        own = np.frombuffer(text.ljust(BLOCK, b"\0"), np.uint8) * np.uint8(self.here)
        summed = self._add(tf.constant(own, tf.float32))
        return self.strategy.experimental_local_results(summed)[0].numpy().astype(np.uint8).tobytes()

    @cached_property
    def _add(self) -> Callable[[tf.Tensor], Any]:
        """Sums the blocks of all workers' first replicas: of floats, which every way of summing takes."""

        def of_replica(block):
            context = tf.distribute.get_replica_context()
            first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), tf.float32)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, block * first)

        block = tf.TensorSpec((BLOCK,), tf.float32)
        return tf.function(lambda own: self.strategy.run(of_replica, (own,)), [block], autograph=False)


def _leave_log_files() -> None:
    """The log of a run is the chief's; other workers talk to their terminals."""
    log = logging.getLogger()
    for handler in [each for each in log.handlers if isinstance(each, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()


ALONE = Chief()

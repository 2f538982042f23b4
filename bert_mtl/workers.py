"""joblib workers as `data.backend` and `data.workers` ask for them; a job is a function's arguments."""

import functools
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import joblib
import tensorflow as tf

from bert_mtl.config import DataConfig
from conf.errors import ConfigError, Problem

WORTH_A_WORKER = 8192  # examples: starting a process (TensorFlow's import) takes as long as tokenising so many, or more


def run_jobs(
    function: Callable, jobs: Sequence[tuple], data: DataConfig, *, examples: int, ordered: bool = True
) -> Iterator[Any]:
    """What `function(*job)` returns for every job; `examples` is how many there are in all of them.

    With more than one worker the work begins at once, not when the first result is asked for.

    Raises:
        ConfigError: the backend is not installed.
    """
    workers = data.workers
    if workers == -1 and data.backend == "loky":
        workers = min(joblib.cpu_count(), examples // WORTH_A_WORKER)
    if workers != -1:
        workers = max(1, min(workers, len(jobs)))
    backend = "sequential" if workers == 1 else data.backend
    _prepare(backend)
    streamed = "generator" if ordered else "generator_unordered"
    with joblib.parallel_config(backend=backend, n_jobs=workers):
        # ray's backend cannot stream
        parallel = joblib.Parallel(return_as="list" if backend == "ray" else streamed, batch_size=1)
    run = _on_cpu if backend in ("sequential", "threading") else _in_process
    with _interrupts_held() if backend == "loky" else nullcontext():
        return iter(parallel(joblib.delayed(run)(function, job) for job in jobs))


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C, which a terminal sends to all: this process alone ends the work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # new processes inherit it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _on_cpu(function: Callable, job: tuple) -> Any:
    with tf.device("CPU:0"):
        return function(*job)


def _in_process(function: Callable, job: tuple) -> Any:
    """Runs a job in a process of its own: without the GPU, whose memory each process would reserve for itself.

    So a job holds its tokenizer pickled: one that joblib unpickled would start TensorFlow, GPU and all, before this.
    """
    _hide_gpus()
    return _on_cpu(function, job)


@functools.cache
def _hide_gpus() -> None:
    tf.config.set_visible_devices([], "GPU")


def _prepare(backend: str) -> None:
    """Gives dask a cluster (DASK_SCHEDULER_ADDRESS names one; else this machine) and tells joblib of ray."""
    try:
        if backend == "dask":
            import distributed

            logging.getLogger("distributed").setLevel(logging.WARNING)
            try:
                distributed.get_client()
            except ValueError:
                distributed.Client()
        elif backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
    except ImportError as error:
        package = {"dask": "dask[distributed]", "ray": "ray"}[backend]
        rule = f"be installed (pip install '{package}': {error})"
        raise ConfigError([Problem("data.backend", rule, backend, ("loky", "threading"))]) from None

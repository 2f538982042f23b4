"""How a training goes, window by window of some steps: losses, learning rate, speed; and how full an epoch's rows are.

A window ends after `tracking.every` steps and with its epoch. The device is waited for there: fetching a copy later
would wait as well, for all that has been asked of it by then.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bert_mtl.encoder import EncoderConfig
from bert_mtl.flops import Sizes, Work, training_flops
from bert_mtl.input_pipeline import Epoch, Pipeline
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.packing import Packing
from bert_mtl.runs import Run
from bert_mtl.tracking.names import path_of

PEAKS = {  # of dense bfloat16 products in FLOP/s, by the makers' data sheets
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,  # float16
    "T4": 65e12,  # float16
}


class Load(NamedTuple):
    """What an epoch holds: its `work`, the places for tokens in all its rows, and its steps."""

    work: Work
    places: int | None
    steps: int

    @property
    def fill(self) -> float | None:
        """The share of the places that hold tokens; None where rows are only as long as they must be."""
        return self.work.tokens / self.places if self.places else None


def load_of(pipeline: Pipeline, epoch: Epoch) -> Load:
    """What an epoch of the mixture holds, by the lengths of its examples alone."""
    tokens = squares = masked = 0
    for reader, start, count in zip(pipeline.readers, epoch.starts, epoch.counts, strict=True):
        lengths = reader.lengths[reader.order(start, count)].astype(np.int64)
        rate = max((label.rate for label in reader.columns.labels), default=0)
        tokens, squares = tokens + int(lengths.sum()), squares + int(np.square(lengths).sum())
        masked += round(rate * int(lengths.sum()))
    steps, packing = pipeline.steps(epoch), pipeline.packing
    places = steps * packing.rows * packing.length if isinstance(packing, Packing) else None
    return Load(Work(tokens, squares, masked), places, steps)


def peak_of(run: Run, replicas: int) -> float | None:
    """FLOP/s of all replicas that MFU is a share of: `tracking.peak` each, or the maker's figure of the GPU in
    bfloat16; None where neither is known, or where not all weights are trained, as `flops` counts."""
    if run.config.model.trainable != "all" or any(task.trainable != "all" for task in run.config.tasks.values()):
        return None
    if run.config.tracking.peak is not None:
        return run.config.tracking.peak * replicas
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus or run.config.model.dtype != "mixed_bfloat16":
        return None
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
    peak = peak_by_name(name)
    return None if peak is None else peak * replicas


def peak_by_name(gpu: str) -> float | None:
    """FLOP/s of a GPU as its driver calls it; None of one that `PEAKS` does not have."""
    words = re.split(r"[\s-]+", gpu)
    return next((peak for known, peak in PEAKS.items() if known in words), None)


Found = list[tuple[int, dict[str, float]]]  # steps, and values by name


class Meter:
    """Told of a run's steps, it tells what each window of them found.

    Attributes:
        compile_seconds: what the run's first call took longer than others of as many steps: tracing and compiling; None
            until its epoch has ended.
    """

    def __init__(self, run: Run, train: Pipeline):
        self.train, self.every = train, run.config.tracking.every
        heads = [(task.name, head.name) for task in run.tasks.values() for head in task.heads.values()]
        self.names = ["loss", *(f"{path_of(task, head)}/loss" for task, head in heads)]
        self.sizes, self.peak = sizes_of(run.facts.encoder), peak_of(run, train.replicas)
        self.readings = 2 if run.config.train.r_drop else 1
        self.compile_seconds: float | None = None
        self.tokens = self.flops = self.seconds = 0.0  # of all windows
        self.model: Any = None
        self.first: tuple[int, float] | None = None  # steps and seconds of the first call

    def begin_epoch(self, model: MultiTaskModel, epoch: Epoch) -> None:
        """Steps of an epoch begin now."""
        if self.model is not model:
            self.model = model
            # One call: asked for one by one they take 5 ms.
            self._numbers = tf.function(lambda: _numbers(model), autograph=False)
        self.epoch, self.load = epoch, load_of(self.train, epoch)
        self.before = keras.ops.convert_to_numpy(self._numbers())
        self.since, self.steps, self.untimed = time.perf_counter(), 0, 0
        self.timed_steps, self.timed_seconds = 0, 0.0

    def end_steps(self, count: int, step: int, offset: int) -> Found:
        """So many steps more are asked of the device: `step` in all, `offset` in this epoch."""
        self.steps += count
        if self.first is None:
            int(self.model.watch.result())  # once it is known, the steps have been taken
            self.first, self.untimed = (count, time.perf_counter() - self.since), count
            self.since = time.perf_counter()
        ended = step // self.every > (step - count) // self.every or offset == self.load.steps
        return self._read(step, offset) if ended else []

    def end_epoch(self) -> None:
        """All steps of the epoch are done."""
        if self.compile_seconds is None and self.first is not None and self.timed_steps:
            count, seconds = self.first
            self.compile_seconds = max(seconds - count * self.timed_seconds / self.timed_steps, 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside, such as saving, is no time of steps."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def _read(self, step: int, offset: int) -> Found:
        """What the window that ends here has found, as soon as the device has taken its steps."""
        losses, numbers = len(self.names), keras.ops.convert_to_numpy(self._numbers())
        seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
        (sums, counts), self.before = np.split((numbers - self.before)[: 2 * losses], 2), numbers
        values: dict[str, float] = {"epoch": self.epoch.number + offset / self.load.steps}
        values |= {
            name: float(total / count) for name, total, count in zip(self.names, sums, counts, strict=True) if count > 0
        }
        values |= {"optimizer/gradient_norm": float(numbers[-2]), "optimizer/learning_rate": float(numbers[-1])}
        steps, self.steps, self.untimed = self.steps - self.untimed, 0, 0
        if steps:
            self.timed_steps, self.timed_seconds = self.timed_steps + steps, self.timed_seconds + seconds
            values |= self._speed(steps, seconds)
        return [(step, values)]

    @property
    def speeds(self) -> dict[str, float]:
        """Means of this process over all of its windows, and `compile_seconds`."""
        found = self._speeds(self.tokens, self.flops, self.seconds) if self.seconds else {}
        return found | ({} if self.compile_seconds is None else {"compile_seconds": self.compile_seconds})

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Of a window. What its steps hold is not looked up: rows are full, so it is what they hold on average."""
        share = steps / self.load.steps
        tokens = share * self.load.work.tokens
        flops = share * self.readings * training_flops(self.sizes, self.load.work)
        self.tokens, self.flops, self.seconds = self.tokens + tokens, self.flops + flops, self.seconds + seconds
        return self._speeds(tokens, flops, seconds)

    def _speeds(self, tokens: float, flops: float, seconds: float) -> dict[str, float]:
        found = {"speed/tokens_per_second": tokens / seconds}
        return found if self.peak is None else found | {"speed/mfu": flops / seconds / self.peak}


def _numbers(model: MultiTaskModel) -> Any:
    """`(2 * losses + 2,)` on the device: sums and counts of the epoch's losses so far, the norm of the last gradient,
    and the learning rate of its step."""
    means = model.loss_means
    values = [*(mean.total for mean in means), *(mean.count for mean in means)]
    values += [model.watch.numbers[1], model.optimizer.schedule(model.optimizer.batches - 1)]
    return tf.stack([tf.cast(tf.convert_to_tensor(value), tf.float32) for value in values])


def sizes_of(encoder: EncoderConfig) -> Sizes:
    """What `flops` counts by."""
    found = encoder.num_layers, encoder.hidden_dim, encoder.num_heads, encoder.intermediate_dim, encoder.vocab_size
    return Sizes(*found)

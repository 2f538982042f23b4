"""One real training of `bert_mtl`, timed: the process that `benchmarks.training` starts.

    python -m benchmarks.train_ours <request.json>

It begins a run as `bert_mtl.train` does and goes through its `fit`; a keeper with a clock ends it. Time runs from the
end of one step to the end of a later one, the device idle at both. The real tokens are those of the very batches that
were trained on, counted afterwards. `prepare` writes such batches' examples for the peer instead, and trains nothing.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bert_mtl.config import TrainConfig
from bert_mtl.flops import Work
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.keeper import Keeper
from bert_mtl.tracking import Careful
from bert_mtl.train import begin, fit
from bert_mtl.vocabulary import pretrained_folder
from bert_mtl.weights import vocab_file
from conf import entry


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    processors = tf.config.list_physical_devices("CPU")
    if request.get("devices", 1) > 1 and not tf.config.list_physical_devices("GPU"):  # a trial: parts of one CPU
        parts = [tf.config.LogicalDeviceConfiguration()] * request["devices"]
        tf.config.set_logical_device_configuration(processors[0], parts)
    found = {"prepare": prepare, "time": time_steps, "losses": losses_of_steps}[request["mode"]](request)
    Path(request["out"]).write_text(json.dumps(found))


class Finished(Exception):
    """All steps are timed."""


class Clock(Keeper):
    """A keeper that times `steps` steps after `warmup` of them, and after `settle` more once it may have the device."""

    def __init__(self, request: dict, *args: Any):
        super().__init__(*args)
        self.request = request
        self.first = self.begin = self.end = 0  # steps taken then
        self.times: dict[str, float] = {}
        self.processor = 0.0  # seconds of all cores
        self.peak = 0.0

    def restore(self, model: keras.Model) -> None:
        super().restore(model)
        self.called = time.perf_counter()

    def end_steps(self, count: int) -> None:
        super().end_steps(count)
        if not self.times:
            self.times["compile"] = self._now() - self.called
        if not self.peak and self.step >= self.request["warmup"]:
            self._now()
            peak_flops()  # compiled before this process says that it is ready
            self.times["waited"] = wait_for_turn()
            self.peak, self.first = peak_flops(), self.step
        elif self.peak and not self.begin and self.step >= self.first + self.request["settle"]:
            self.times["begin"], self.begin, self.processor = self._now(), self.step, -time.process_time()
        elif self.begin and self.step >= self.begin + self.request["steps"]:
            self.times["end"], self.end = self._now(), self.step
            self.processor += time.process_time()
            raise Finished

    def _now(self) -> float:
        """The time when all steps so far are done: a weight that they change is fetched."""
        keras.ops.convert_to_numpy(self.model.head_variables[-1])
        return time.perf_counter()


class Losses(Keeper):
    """A keeper that notes the mean loss of the epoch after each of `steps` steps."""

    def __init__(self, steps: int, *args: Any):
        super().__init__(*args)
        self.most, self.losses = steps, list[float]()

    def end_steps(self, count: int) -> None:
        super().end_steps(count)
        self.losses.append(float(self.model.loss_means[0].result()))
        if len(self.losses) == self.most:
            raise Finished


def losses_of_steps(request: dict) -> list[float]:
    """The mean loss after each of the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        begun = begin(training_config(request, folder))
        keeper = Losses(request["steps"], begun.run, begun.pipeline, {}, Careful([]))
        with suppress(Finished):
            fit(begun, keeper)
    return keeper.losses


def time_steps(request: dict) -> dict:
    """Seconds and work of the timed steps, seconds of the first one, the device's peak and its memory."""
    with tempfile.TemporaryDirectory() as folder:
        begun = begin(training_config(request, folder))
        run, pipeline, model = begun.run, begun.pipeline, begun.model
        check_steps(pipeline, request)
        clock = Clock(request, run, pipeline, {}, Careful([]))
        with suppress(Finished):
            fit(begun, clock)
    work = work_of(steps_of(pipeline, clock.begin, clock.end))
    is_gpu = bool(tf.config.list_physical_devices("GPU"))
    return {
        "seconds": clock.times["end"] - clock.times["begin"],
        "processor_seconds": clock.processor,
        "steps": clock.end - clock.begin,
        "work": work,
        "compile_seconds": clock.times["compile"],
        "peak_flops": clock.peak,
        "memory": tf.config.experimental.get_memory_info("GPU:0")["peak"] if is_gpu else None,
        "rows": [pipeline.layout.rows, pipeline.layout.length],
        "dtype": model.encoder.compute_dtype,
        "versions": {name: version(name) for name in ("tensorflow", "keras")},
    }


def prepare(request: dict) -> dict:
    """Builds the records of all workloads and writes the examples of the steps that will be timed; the vocabulary."""
    minilm = entry.compose("train", ["model=minilm"], TrainConfig)
    vocab = request["vocab"] or vocab_file(pretrained_folder(minilm.model, minilm.cache_dir) or Path())
    for workload in request["workloads"]:
        # Which examples are a step's does not depend on the model: the smallest will do.
        workload["overrides"] += ["model=tiny", f"tokenizer.vocab='{vocab}'"]
        with tempfile.TemporaryDirectory() as folder:
            pipeline = begin(training_config(workload, folder)).pipeline
        check_steps(pipeline, workload)
        begun = workload["warmup"] + workload["settle"]
        save_examples(Path(workload["examples"]), pipeline, steps_of(pipeline, begun, begun + workload["steps"]))
    return {"vocab": str(Path(vocab).resolve())}


def training_config(request: dict, folder: str) -> TrainConfig:
    return entry.compose("train", [*request["overrides"], f"run.dir={folder}/run"], TrainConfig)


def check_steps(pipeline: Pipeline, request: dict) -> None:
    """Between epochs there is more to do than steps, so all must be of one; each count ends with a call of steps."""
    call = entry.compose("train", request["overrides"], TrainConfig).train.steps_per_execution
    needed = sum(-(-request[key] // call) * call for key in ("warmup", "settle", "steps"))
    there = pipeline.steps(pipeline.first_epoch)
    if needed > there:
        raise SystemExit(f"warmup, settling and steps must be within an epoch of {there} steps; got {needed}.")


def steps_of(pipeline: Pipeline, begin: int, end: int) -> list[dict]:
    """The batches of those steps of the first epoch, of all replicas."""
    with closing(pipeline.batches(pipeline.first_epoch, begin)) as batches:
        return list(itertools.islice(batches, (end - begin) * pipeline.replicas))


def work_of(batches: Iterable[dict]) -> Work:
    tokens, squares, masked = 0, 0, 0.0
    for batch in batches:
        lengths = np.bincount(batch["segment_ids"].ravel())[1:]
        tokens, squares = tokens + int(lengths.sum()), squares + int((lengths**2).sum())
        masked += sum(batch[key.replace("place.", "weight.")].sum() for key in batch if key.startswith("place."))
    return Work(tokens, squares, int(masked))


def save_examples(file: Path, pipeline: Pipeline, batches: Iterable[dict]) -> None:
    """The examples of batches as they are before masking: `token_ids` `(tokens,)`, `lengths` and `task` `(examples,)`,
    `text.<head>` `(examples, …)` and `token.<head>` `(tokens,)`; `masked` says whether words are to be guessed."""
    columns: dict[str, list[Any]] = {}
    for batch in batches:
        token_ids, segment_ids = batch["token_ids"].ravel().copy(), batch["segment_ids"].ravel()
        for head in (label.name for label in pipeline.labels if label.level == "mask"):
            there = batch[f"weight.{head}"] > 0
            token_ids[batch[f"place.{head}"][there]] = batch[f"label.{head}"][there]
        places = np.flatnonzero(segment_ids)
        places = places[np.argsort(segment_ids[places], kind="stable")]
        segments, lengths = np.unique(segment_ids[places], return_counts=True)
        found = {"token_ids": token_ids[places], "lengths": lengths, "task": batch["task"][segments - 1]}
        for label in (each for each in pipeline.labels if each.level != "mask"):
            values = batch[f"label.{label.name}"]
            chosen = values.ravel()[places] if label.level == "token" else values[segments - 1]
            found[f"{label.level}.{label.name}"] = chosen
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    np.savez(file, masked=any(label.level == "mask" for label in pipeline.labels), **arrays)


def wait_for_turn() -> float:
    """Tells the parent process that all is compiled; returns the seconds until it says go."""
    start = time.perf_counter()
    print("READY", flush=True)
    sys.stdin.readline()
    return time.perf_counter() - start


def peak_flops() -> float:
    """FLOP/s of a large matrix product, the best of a few: 8,192³ in bfloat16 on a GPU, 2,048³ in float32 on a CPU."""
    is_gpu = bool(tf.config.list_physical_devices("GPU"))
    size, times, dtype = (8192, 20, tf.bfloat16) if is_gpu else (2048, 4, tf.float32)
    a = tf.random.normal((size, size), stddev=size**-0.5, dtype=dtype)
    float(tf.matmul(a, a)[0, 0])
    seconds = []
    for _ in range(5):
        start, product = time.perf_counter(), a
        for _ in range(times):
            product = tf.matmul(product, a)
        float(product[0, 0])
        seconds.append(time.perf_counter() - start)
    return times * 2 * size**3 / min(seconds)


if __name__ == "__main__":
    main()

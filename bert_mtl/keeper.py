"""What a training keeps: dev scores after every epoch, the selected weights, and a state to resume from exactly."""

import itertools
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import keras
import numpy as np

from bert_mtl.atomic import atomic_write
from bert_mtl.exits import head_of
from bert_mtl.input_pipeline import Epoch, Pipeline
from bert_mtl.meter import Found, Meter
from bert_mtl.mixing import quotas, rates
from bert_mtl.optimization import averaged_weights
from bert_mtl.progress import Display
from bert_mtl.runs import (
    Run,
    RunError,
    everything_of,
    load_variables,
    part_metrics,
    read_facts,
    save_variables,
)
from bert_mtl.selected import Selected
from bert_mtl.tasks import DataError
from bert_mtl.tracking import Careful
from bert_mtl.tracking.names import path_of

log = logging.getLogger(__name__)

CHECK_EVERY = 100  # steps between looks at what the device found: each look waits for all steps before it


class Keeper:
    """What a run has done so far; `bert_mtl.train.fit` tells it of every step and epoch.

    Attributes:
        epoch: the one that is trained now; `offset` of its `steps` are done, `step` in all.
        epochs: one dictionary a finished epoch: train losses, `dev` metrics by head and exit, what heads
            tuned, seconds.
        best: index in `epochs` of the epoch whose weights are kept (`train.select`).
        stop: no better epoch came for `train.patience` epochs.
    """

    def __init__(self, run: Run, train: Pipeline, dev: Mapping[str, Pipeline], tracker: Careful):
        self.run, self.train, self.dev, self.tracker = run, train, dev, tracker
        self.settings, self.chief = run.config.train, run.chief
        self.epoch, self.steps = train.first_epoch, train.steps(train.first_epoch)
        self.epochs: list[dict] = []
        self.best = self.step = self.offset = 0
        self.stop = False
        self.meter, self.display = Meter(run, train), Display(self.settings.epochs, self.chief.here)
        self.selected, self.compile_told = Selected(run, tracker), False
        self.task_of = {head.name: task.name for task in run.tasks.values() for head in task.heads.values()}

    @property
    def done(self) -> bool:
        return self.stop or self.epoch.number >= self.settings.epochs

    def restore(self, model: keras.Model) -> None:
        """Brings `model`, the one that learns, to the run's saved state, if any."""
        self.model = model
        if self.run.state.exists():
            facts = read_facts(self.run.state)
            if (before := facts.get("replicas", self.train.replicas)) != self.train.replicas:
                told = f"{before} replicas, as it began; got {self.train.replicas}"
                raise RunError(f"run.resume must go on with {told}.")
            number, counts, starts = facts["epoch"]
            self.epoch = Epoch(number, tuple(counts), tuple(starts))
            self.step, self.offset, self.epochs = facts["step"], facts["offset"], facts["epochs"]
            self.best, self.stop = facts["best"], facts["stop"]
            self.steps = self.train.steps(self.epoch)
            load_variables(self.run.state, everything_of(model))
        step = self.chief.does(lambda: self.step)
        if self.step != step:
            where = f"{self.step} here, {step} at the chief"
            raise RunError(f"run.resume must be a folder that all workers share; its state is of step {where}.")
        self.tracker.rewind(self.step)
        if self.run.state.exists():
            where = "after its last epoch" if self.done else f"in epoch {self.epoch.number + 1}"
            log.info("resumed %s, after %d steps", where, self.step)

    def begin_epoch(self) -> None:
        """Makes ready for the steps of `epoch` that are still to do."""
        self.started = time.perf_counter()
        self.model.optimizer.schedule.begin(self.epoch.number, self.step - self.offset, self.steps)
        if not self.offset:
            self.model.reset_metrics()
        self.meter.begin_epoch(self.model, self.epoch)
        self.display.begin_epoch(self.epoch.number, self.offset, self.steps)

    def end_steps(self, count: int) -> None:
        """So many steps more are done."""

        def passed(every: int) -> bool:
            return self.step // every > (self.step - count) // every

        self.step, self.offset = self.step + count, self.offset + count
        self.display.end_steps(count)
        self._tell(self.meter.end_steps(count, self.step, self.offset))
        if passed(self.settings.save_every) and self.offset < self.steps:
            with self.meter.paused():
                self.save()
        elif passed(CHECK_EVERY):
            self._check_steps()

    def end_epoch(self) -> None:
        """The steps of `epoch` are done: scores it, and goes to the next one."""
        self._check_steps()
        self.meter.end_epoch()
        self.close()
        fill = self.meter.load.fill
        epoch = self.epoch.number
        seconds = time.perf_counter() - self.started
        self._check_weights()
        losses = {mean.name: float(mean.result()) for mean in self.model.loss_means}
        counts = dict(zip(self.run.tasks, self.epoch.counts, strict=True))
        entry = {"epoch": epoch + 1, **losses, "examples": counts, "weights": self.model.weighting.current()}
        self.model.weighting.end_epoch()
        with averaged_weights(self.model):
            dev, tuned = self.chief.does(self._scored)
            self.epochs.append(entry | {"dev": dev, "tuned": tuned, "seconds": seconds})
            scores = [self.score(done["dev"]) for done in self.epochs]
            if self.settings.select == "last" or scores[-1] > max(scores[:-1], default=-np.inf):
                self.best = epoch
                self.chief.does(lambda: self.selected.take(self.model, tuned))
        self.stop = self.settings.patience is not None and epoch - self.best >= self.settings.patience
        self.epoch, self.offset = self.epoch.following(self._counts(epoch + 1, dev)), 0
        self.steps = self.train.steps(self.epoch)
        if self.chief.here:
            self._report(losses, fill, **self.epochs[-1])
        self.save()

    def _scored(self) -> tuple[dict, dict]:
        """Metrics by head on dev, and what heads tuned there. The chief's alone count: workers of unlike processors
        could differ in the last digit, and so in which epoch is the best."""
        dev = part_metrics(self.model, self.dev, tune=True)
        self._check_scores(dev)
        return dev, {name: head.tuned for name, head in self.model.heads.items() if head.tuned}

    def _tell(self, found: Found) -> None:
        """What windows of steps have found, to all who watch."""
        for step, values in found:
            self.display.show(values)
            if self.chief.here:
                self.tracker.log(values, step)

    def close(self) -> None:
        """Takes the bar away."""
        self.display.close()

    def _report(
        self, losses: dict[str, float], fill: float | None, examples: dict, weights: dict, dev: dict, **more: Any
    ) -> None:
        """A line a head in the log, and everything to the trackers."""
        total = sum(examples.values())
        values = {
            "epoch": more["epoch"],
            "seconds": more["seconds"],
            "score": self.score(dev),
            "epoch_loss": losses["loss"],
        }
        values |= {f"{self.path(head)}/epoch_loss": losses[f"{head}_loss"] for head in self.task_of}
        for head, found in dev.items():
            values |= {f"{self.path(head)}/dev_{name}": value for name, value in found.items()}
        values |= {f"mixing/{task}": count / total for task, count in examples.items()}
        values |= {f"weight/{self.path(head)}": value for head, value in weights.items()}
        values |= {"packing/fill": fill} if fill is not None else {}
        if self.meter.compile_seconds is not None and not self.compile_told:
            self.compile_told = True
            values["compile_seconds"] = self.meter.compile_seconds
        self.tracker.log(values, self.step)
        shares = ", ".join(f"{task} {count:,} ({count / total:.1%})" for task, count in examples.items())
        log.info("epoch %d: loss %.4f; examples: %s", len(self.epochs), losses["loss"], shares)
        for head, found in dev.items():
            scores = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            learned = f"loss {losses[f'{head}_loss']:.4f}, weight {weights[head]:.3g}; " if head in weights else ""
            log.info("  %s: %sdev: %s", head, learned, scores)  # an exit's loss is part of its head's

    def path(self, head: str) -> str:
        """What the values of a head, also at an exit, are called."""
        return path_of(self.task_of[head_of(head)], head)

    def score(self, dev: dict[str, dict[str, float]]) -> float:
        """What selection compares: the mean over heads of each one's own metric."""
        return float(np.mean(list(self.task_scores(dev).values())))

    def task_scores(self, dev: dict[str, dict[str, float]]) -> dict[str, float]:
        """Task -> mean over its heads of each one's own metric on dev; heads without labels have none."""
        scores = {
            name: [dev[head.name][head.metric] for head in task.heads.values() if dev.get(head.name)]
            for name, task in self.run.tasks.items()
        }
        return {name: float(np.mean(found)) for name, found in scores.items() if found}

    def _counts(self, epoch: int, dev: dict[str, dict[str, float]]) -> list[int]:
        """How many examples of each task epoch number `epoch` has."""
        config, sizes = self.run.config.mixing, task_sizes(self.train)
        shares = rates(config, sizes, epoch=epoch, epochs=self.settings.epochs, scores=self.task_scores(dev))
        return quotas(shares, sum(self.epoch.counts)).tolist()

    def _check_steps(self) -> None:
        """Raises RunError where a loss or a gradient of the epoch's steps was not finite; the first such batch's
        examples are written to the run's folder."""
        if not (broken_at := int(self.model.watch.result())):
            return
        step = self.step - self.offset + broken_at
        with closing(self.train.batches(self.epoch, broken_at - 1)) as batches:
            found = list(itertools.islice(batches, self.train.replicas))
        there = [name for name in self.model.heads if any(batch[f"count.{name}"] for batch in found)]
        loss, gradient_norm, *of_heads = keras.ops.convert_to_numpy(self.model.watch.numbers).tolist()
        weighted = self.model.weighting.base * np.array(of_heads, np.float32)  # in float32, as the step does
        of_head = dict(zip(self.model.heads, weighted, strict=True))
        heads = [name for name in there if not np.isfinite(of_head[name])]
        what = f"the loss of {' and '.join(heads)}" if heads else f"the gradients of {', '.join(there)}"
        value = gradient_norm if np.isfinite(loss) else loss
        file = self.run.folder / f"broken-batch-{step}.json"
        examples = [example for batch in found for example in examples_of(batch, self.train)]
        facts = {"step": step, "heads": heads or there, "examples": examples}
        if self.chief.here:
            with atomic_write(file) as written:
                written.write(json.dumps(facts, ensure_ascii=False, indent=1).encode())
        raise RunError(
            f"{what} must stay finite; got {value} at step {step}, whose texts and labels are in {file}. {self._advice}"
        )

    @property
    def _advice(self) -> str:
        optimizer = self.run.config.optimizer
        clip = " or set optimizer.clip_norm" if optimizer.clip_norm is None else ""
        return f"Lower optimizer.learning_rate ({optimizer.learning_rate:g}){clip}. " + (
            "The last good state is kept." if self.run.state.exists() else "No state has been saved yet."
        )

    def _check_weights(self) -> None:
        if not all(np.isfinite(keras.ops.convert_to_numpy(v)).all() for v in self.model.trainable_variables):
            raise RunError(f"the weights must stay finite; got NaN or infinity by step {self.step}. {self._advice}")

    def _check_scores(self, dev: dict[str, dict[str, float]]) -> None:
        if broken := [head for head, found in dev.items() if not np.isfinite(list(found.values())).all()]:
            scores = ", ".join(f"{name} {value}" for name, value in dev[broken[0]].items())
            raise RunError(f"the dev scores of {' and '.join(broken)} must be finite; got {scores}. {self._advice}")

    def save(self) -> None:
        """Writes the state to resume from, or says that it cannot: training goes on, and the next one may be written.
        Raises RunError where a step since the last one broke it."""
        self._check_steps()
        self._check_weights()
        facts = {name: getattr(self, name) for name in ("step", "offset", "epochs", "best", "stop")}
        epoch = [self.epoch.number, self.epoch.counts, self.epoch.starts]
        facts |= {"epoch": epoch, "replicas": self.train.replicas}
        # Reading a metric sums it over all replicas: no worker can do it alone.
        arrays = {name: keras.ops.convert_to_numpy(value) for name, value in everything_of(self.model).items()}
        self.chief.does(lambda: self._write_state(arrays, facts))

    def _write_state(self, arrays: dict[str, np.ndarray], facts: dict) -> None:
        if not self.selected.written():
            return  # a state must not speak of weights that are not there
        try:
            save_variables(self.run.state, arrays, facts)
        except (DataError, OSError) as error:
            self.tracker.note(str(self.run.folder), f"the state after step {self.step}", error)


def task_sizes(pipeline: Pipeline) -> dict[str, int]:
    """Task -> examples of the pipeline's part."""
    return {reader.task.name: reader.examples for reader in pipeline.readers}


def examples_of(batch: Mapping[str, np.ndarray], pipeline: Pipeline) -> Iterator[dict]:
    """The examples of a batch as one reads them: `task`, `tokens` (of both texts) and `labels`, of token heads the
    numbers of the tags."""
    tasks, tokens = {reader.task.number: reader.task for reader in pipeline.readers}, pipeline.tokenizer.tokens
    for segment in np.flatnonzero(batch["index"] >= 0):
        own = np.isin(batch["segment_ids"], [segment + 1, batch["partner"][segment] + 1])
        task = tasks[int(batch["task"][segment])]
        labels = {}
        for label in (each for each in task.labels if each.level != "mask"):
            values, weights = batch[f"label.{label.name}"], batch[f"weight.{label.name}"]
            place = segment if label.level == "text" else own & (weights > 0)
            if np.any(weights[place]):
                labels[label.name] = values[place].tolist()
        yield {
            "task": task.name,
            "tokens": " ".join(tokens[token] for token in batch["token_ids"][own]),
            "labels": labels,
        }

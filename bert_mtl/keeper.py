"""What a training keeps: dev scores after every epoch, the selected weights, and a state to resume from exactly."""

import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import keras
import numpy as np

from bert_mtl.input_pipeline import Epoch, Pipeline
from bert_mtl.mixing import quotas, rates
from bert_mtl.optimization import averaged_weights
from bert_mtl.records import atomic_write
from bert_mtl.runs import (
    Run,
    RunError,
    everything_of,
    load_variables,
    part_metrics,
    read_facts,
    save_variables,
    weights_of,
)

log = logging.getLogger(__name__)


class Keeper(keras.callbacks.Callback):
    """Keras callback of a run, over fits of one epoch each.

    Attributes:
        epoch: the one that is trained now; `offset` of its `steps` are done, `step` in all.
        epochs: one dictionary a finished epoch: train losses, `dev` metrics by head, what heads tuned, seconds.
        best: index in `epochs` of the epoch whose weights are kept (`train.select`).
        stop: no better epoch came for `train.patience` epochs.
    """

    def __init__(self, run: Run, train: Pipeline, dev: Mapping[str, Pipeline], track: Callable[[dict, int], None]):
        super().__init__()
        self.run, self.train, self.dev, self.track = run, train, dev, track
        self.settings = run.config.train
        self.epoch, self.steps = train.first_epoch, train.steps(train.first_epoch)
        self.epochs: list[dict] = []
        self.best = self.step = self.offset = 0
        self.stop = False
        self.verbose = 1 if sys.stdout.isatty() else 0  # the log has a line an epoch

    @property
    def done(self) -> bool:
        return self.stop or self.epoch.number >= self.settings.epochs

    def restore(self, model: keras.Model) -> None:
        """Brings `model` to the run's saved state, if any."""
        if self.run.state.exists():
            facts = read_facts(self.run.state)
            number, counts, starts = facts["epoch"]
            self.epoch = Epoch(number, tuple(counts), tuple(starts))
            self.step, self.offset, self.epochs = facts["step"], facts["offset"], facts["epochs"]
            self.best, self.stop = facts["best"], facts["stop"]
            self.steps = self.train.steps(self.epoch)
            load_variables(self.run.state, everything_of(model))
            log.info("resumed in epoch %d after %d steps", self.epoch.number + 1, self.step)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()
        self.model.optimizer.schedule.begin(self.epoch.number, self.step - self.offset, self.steps)
        if self.offset:  # fit has just cleared the running metrics of the interrupted epoch
            metrics = {name: v for name, v in everything_of(self.model).items() if name.startswith("metric/")}
            load_variables(self.run.state, metrics)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not np.isfinite(logs["loss"]):
            raise RunError(self._broken(logs))
        self.step, self.offset = self.step + 1, self.offset + 1
        if self.step % self.settings.save_every == 0 and self.offset < self.steps:
            self.save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self.started
        losses = {name: float(value) for name, value in logs.items()}
        counts = dict(zip(self.run.tasks, self.epoch.counts, strict=True))
        entry = {"epoch": epoch + 1, **losses, "examples": counts, "weights": self.model.weighting.current()}
        self.model.weighting.end_epoch()
        with averaged_weights(self.model):
            dev = part_metrics(self.model, self.dev, tune=True)
            tuned = {name: head.tuned for name, head in self.model.heads.items() if head.tuned}
            self.epochs.append(entry | {"dev": dev, "tuned": tuned, "seconds": seconds})
            scores = [self.score(done["dev"]) for done in self.epochs]
            if self.settings.select == "last" or scores[-1] > max(scores[:-1], default=-np.inf):
                self.best = epoch
                save_variables(self.run.weights, weights_of(self.model))
                with atomic_write(self.run.tuned) as file:
                    file.write(json.dumps(tuned).encode())
        self.stop = self.settings.patience is not None and epoch - self.best >= self.settings.patience
        self.epoch, self.offset = self.epoch.following(self._counts(epoch + 1, dev)), 0
        self.steps = self.train.steps(self.epoch)
        self.save()
        self._report(losses, **self.epochs[-1])

    def _report(self, losses: dict[str, float], examples: dict, weights: dict, dev: dict, **_: Any) -> None:
        """A line a head in the log, and everything to the tracker."""
        total = sum(examples.values())
        tracked = {f"dev_{head}_{name}": value for head, found in dev.items() for name, value in found.items()}
        tracked |= {f"share_{task}": count / total for task, count in examples.items()}
        tracked |= {f"weight_{head}": value for head, value in weights.items()}
        self.track(losses | tracked, self.step)
        shares = ", ".join(f"{task} {count:,} ({count / total:.1%})" for task, count in examples.items())
        log.info("epoch %d: loss %.4f; examples: %s", len(self.epochs), losses["loss"], shares)
        for head, found in dev.items():
            scores = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            log.info("  %s: loss %.4f, weight %.3g; dev: %s", head, losses[f"{head}_loss"], weights[head], scores)

    def score(self, dev: dict[str, dict[str, float]]) -> float:
        """What selection compares: the mean over heads of each one's own metric."""
        return float(np.mean(list(self.task_scores(dev).values())))

    def task_scores(self, dev: dict[str, dict[str, float]]) -> dict[str, float]:
        """Task -> mean over its heads of each one's own metric on dev."""
        return {
            name: float(np.mean([dev[head.name][head.metric] for head in task.heads.values()]))
            for name, task in self.run.tasks.items()
        }

    def _counts(self, epoch: int, dev: dict[str, dict[str, float]]) -> list[int]:
        """How many examples of each task epoch number `epoch` has."""
        config, sizes = self.run.config.mixing, task_sizes(self.train)
        shares = rates(config, sizes, epoch=epoch, epochs=self.settings.epochs, scores=self.task_scores(dev))
        return quotas(shares, sum(self.epoch.counts)).tolist()

    def _broken(self, logs: dict[str, float]) -> str:
        """What is said of a loss that is not finite; the batch's examples are written to the run's folder."""
        heads = [name for name in self.model.heads if not np.isfinite(logs[f"{name}_loss"])]
        with closing(self.train.batches(self.epoch, self.offset)) as batches:
            found = list(itertools.islice(batches, self.train.replicas))
        examples = [example for batch in found for example in examples_of(batch, self.train)]
        file = self.run.folder / f"broken-batch-{self.step + 1}.json"
        with atomic_write(file) as written:
            facts = {"step": self.step + 1, "heads": heads, "examples": examples}
            written.write(json.dumps(facts, ensure_ascii=False, indent=1).encode())
        return (
            f"the loss of {' and '.join(heads) or 'every head together'} must stay finite; got {logs['loss']} at step "
            f"{self.step + 1}, whose texts and labels are in {file}. Lower optimizer.learning_rate or set "
            "optimizer.clip_norm. "
            + ("The last good state is kept." if self.run.state.exists() else "No state has been saved yet.")
        )

    def save(self) -> None:
        """Writes the state to resume from, unless the last update broke it: the next step's loss tells."""
        if not all(np.isfinite(keras.ops.convert_to_numpy(v)).all() for v in self.model.trainable_variables):
            return
        facts = {name: getattr(self, name) for name in ("step", "offset", "epochs", "best", "stop")}
        epoch = [self.epoch.number, self.epoch.counts, self.epoch.starts]
        save_variables(self.run.state, everything_of(self.model), facts | {"epoch": epoch})


def task_sizes(pipeline: Pipeline) -> dict[str, int]:
    """Task -> examples of the pipeline's part."""
    return {reader.task.name: reader.examples for reader in pipeline.readers}


def examples_of(batch: Mapping[str, np.ndarray], pipeline: Pipeline) -> Iterator[dict]:
    """The examples of a batch as one reads them: `task`, `tokens` (of both texts) and `labels` of text heads."""
    tasks, tokens = {reader.task.number: reader.task for reader in pipeline.readers}, pipeline.tokenizer.tokens
    for segment in np.flatnonzero(batch["index"] >= 0):
        own = np.isin(batch["segment_ids"], [segment + 1, batch["partner"][segment] + 1])
        task = tasks[int(batch["task"][segment])]
        heads = [
            label.name for label in task.labels if label.level == "text" and batch[f"weight.{label.name}"][segment]
        ]
        yield {
            "task": task.name,
            "tokens": " ".join(tokens[token] for token in batch["token_ids"][own]),
            "labels": {head: batch[f"label.{head}"][segment].tolist() for head in heads},
        }

"""What a training keeps: dev scores after every epoch, the selected weights, and a state to resume from exactly."""

import logging
import sys
import time
from collections.abc import Callable

import keras
import numpy as np

from bert_mtl.input_pipeline import Pipeline
from bert_mtl.optimization import averaged_weights
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
    """Keras callback of a run.

    Attributes:
        epochs: one dictionary a finished epoch: train loss and accuracy, `dev` metrics by head, seconds.
        best: index in `epochs` of the epoch whose weights are kept (`train.select`).
        stop: no better epoch came for `train.patience` epochs.
    """

    def __init__(self, run: Run, dev: Pipeline, steps_per_epoch: int, track: Callable[[dict, int], None]):
        super().__init__()
        self.run, self.dev, self.steps_per_epoch, self.track = run, dev, steps_per_epoch, track
        self.settings = run.config.train
        self.epochs: list[dict] = []
        self.best = 0
        self.stop = False
        self.step = 0
        self.verbose = 1 if sys.stdout.isatty() else 0  # the log has a line an epoch

    def restore(self, model: keras.Model) -> int:
        """Brings `model` to the run's saved state, if any; returns the number of steps done."""
        if self.run.state.exists():
            facts = read_facts(self.run.state)
            self.epochs, self.best, self.stop, self.step = facts["epochs"], facts["best"], facts["stop"], facts["step"]
            load_variables(self.run.state, everything_of(model))
            log.info("resumed at step %d of %d", self.step, self.settings.epochs * self.steps_per_epoch)
        return self.step

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        if self.step % self.steps_per_epoch:  # fit has just cleared the running metrics of the interrupted epoch
            metrics = {name: v for name, v in everything_of(self.model).items() if name.startswith("metric/")}
            load_variables(self.run.state, metrics)

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if not np.isfinite(logs["loss"]):
            raise RunError(
                f"the loss must stay finite; got {logs['loss']} at step {self.step}. "
                "Lower optimizer.learning_rate or set optimizer.clip_norm. "
                + ("The last good state is kept." if self.run.state.exists() else "No state has been saved yet.")
            )
        if self.step % self.settings.save_every == 0 and self.step % self.steps_per_epoch:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        with averaged_weights(self.model):
            dev = part_metrics(self.model, self.dev)
            self.epochs.append(
                {"epoch": epoch + 1, **{k: float(v) for k, v in logs.items()}, "dev": dev, "seconds": seconds}
            )
            if self.settings.select == "last" or score(dev) > max(map(_dev_score, self.epochs[:-1]), default=-np.inf):
                self.best = epoch
                save_variables(self.run.weights, weights_of(self.model))
        logs |= {f"dev_{head}_{name}": value for head, scores in dev.items() for name, value in scores.items()}
        self.stop = self.settings.patience is not None and epoch - self.best >= self.settings.patience
        self.model.stop_training = self.stop
        self.save()
        self.track(dict(logs), self.step)
        log.info("epoch %d: %s", epoch + 1, ", ".join(f"{name} {value:.4f}" for name, value in logs.items()))

    def save(self) -> None:
        """Writes the state to resume from, unless the last update broke it: the next step's loss tells."""
        if not all(np.isfinite(keras.ops.convert_to_numpy(v)).all() for v in self.model.trainable_variables):
            return
        facts = {"step": self.step, "epochs": self.epochs, "best": self.best, "stop": self.stop}
        save_variables(self.run.state, everything_of(self.model), facts)


def score(dev: dict[str, dict[str, float]]) -> float:
    """What selection compares: the mean accuracy over heads."""
    return float(np.mean([scores["accuracy"] for scores in dev.values()]))


def _dev_score(epoch: dict) -> float:
    return score(epoch["dev"])

"""Experiment trackers: Weights & Biases, TensorBoard. The only package that imports wandb."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bert_mtl.config import TrackingConfig
from bert_mtl.tracking.tracker import Careful, Job, Package, Tracker
from conf.errors import ConfigError

__all__ = ["Careful", "Job", "Package", "Tracker", "open_tracker"]


@contextmanager
def open_tracker(config: TrackingConfig, job: Job, beside: Sequence[Tracker] = ()) -> Iterator[Careful]:
    """What tells the configured tracker, and those `beside` it, of a job, as long as the block lasts. A tracker that
    fails is left behind with a warning; a block that raises ends the job as failed."""
    tracker, failed = Careful(beside), True
    try:
        if config.kind == "wandb":
            from bert_mtl.tracking.weights_and_biases import start

            start(config, job, tracker)
        elif config.kind == "tensorboard":
            from bert_mtl.tracking.board import Board

            tracker.trackers.append(Board(job))
    except ConfigError:
        raise
    except Exception as error:  # as `Careful` says
        tracker.note(config.kind, "the run", f"{type(error).__name__}: {error}")
    try:
        yield tracker
        failed = False
    finally:
        tracker.end(failed)

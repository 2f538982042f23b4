"""Experiment trackers. The only module that imports wandb."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_mtl.config import TrainConfig
from bert_mtl.runs import RunError


@contextmanager
def make_tracker(config: TrainConfig, folder: Path) -> Iterator[Callable[[dict[str, float], int], None]]:
    """A function that logs values by name at a step, as long as the run lasts; with tracking=none it does nothing."""
    if config.tracking.kind == "none":
        yield lambda values, step: None
        return
    import wandb

    try:
        run = wandb.init(
            project=config.tracking.project,
            mode=config.tracking.mode,
            dir=folder,
            id=folder.name,  # a resumed run goes on under its own id
            resume="allow",
            name=folder.name,
            config=config.model_dump(mode="json"),
            tags=[*config.tasks, config.data.source],
        )
    except wandb.errors.Error as error:
        raise RunError(f"tracking=wandb could not start: {error}. Log in, or set tracking.mode=offline.") from error
    with run:
        yield lambda values, step: run.log(values, step=step)

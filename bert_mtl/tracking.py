"""Experiment trackers. The only module that imports wandb."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_mtl.config import TrainConfig


@contextmanager
def make_tracker(config: TrainConfig, folder: Path) -> Iterator[Callable[[dict[str, float], int], None]]:
    """A function that logs values by name at a step, as long as the run lasts; with tracking=none it does nothing."""
    if config.tracking.kind == "none":
        yield lambda values, step: None
        return
    import wandb

    with wandb.init(
        project=config.tracking.project,
        mode=config.tracking.mode,
        dir=folder,
        name=folder.name,
        config=config.model_dump(mode="json", by_alias=True),
        tags=[*config.tasks, config.data.source],
    ) as run:
        yield lambda values, step: run.log(values, step=step)

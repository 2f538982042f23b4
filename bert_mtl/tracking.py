"""Experiment trackers. The only module that imports wandb."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bert_mtl.runs import Run, RunError


@contextmanager
def make_tracker(run: Run) -> Iterator[Callable[[dict[str, float], int], None]]:
    """A function that logs values by name at a step, as long as the run lasts; with tracking=none, and on all
    workers but the chief, it does nothing."""
    config, folder = run.config, run.folder
    if config.tracking.kind == "none" or not run.chief.here:
        yield lambda values, step: None
        return
    import wandb

    try:
        tracked = wandb.init(
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
    with tracked:
        yield lambda values, step: tracked.log(values, step=step)

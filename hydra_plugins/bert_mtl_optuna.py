"""hydra/sweeper=optuna: the trials of `conf.search` to Hydra's launcher, their scores back.

Hydra takes sweepers from the namespace package hydra_plugins alone, and imports every module of it at each start.
"""

import logging
import math
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Runs the trials of a search; each has a folder by its number, with several seeds one a seed (`7-seed2`)."""

    launcher: Launcher
    config: DictConfig
    hydra_context: HydraContext

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from conf.search import Search, Trial, search_config
        from conf.sweep import together

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        config = search_config(self.config.hydra.sweeper)
        folder = Path(self.config.hydra.sweep.dir)
        search = Search(folder, config, parser.parse_overrides(together(arguments, config.params)))
        OmegaConf.save(self.config, folder / "multirun.yaml")
        seeds = config.seeds

        def runs(trial: Trial) -> list[list[str]]:
            if not seeds:
                return [[*trial.overrides, f"hydra.sweep.subdir={trial.number}"]]
            names = [(f"seed={seed}", f"hydra.sweep.subdir={trial.number}-seed{seed}") for seed in seeds]
            return [[*trial.overrides, *name] for name in names]

        for batch in search.batches():
            lists = [overrides for trial in batch for overrides in runs(trial)]
            first = batch[0].number * max(1, len(seeds))
            scores = [job.return_value for job in self.launcher.launch(lists, initial_job_idx=first)]
            for place, trial in enumerate(batch):
                own = scores[place * len(scores) // len(batch) : (place + 1) * len(scores) // len(batch)]
                value = math.fsum(own) / len(own)
                if math.isfinite(value):
                    search.tell(trial.number, value)

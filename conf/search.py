"""A search by Optuna: Hydra's override syntax in, the trials of a study out; the study is a file of the sweep's folder.

A trial that has no value, because it was interrupted or failed, is run again by the same command.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from conf.errors import NOTHING, ConfigError, Problem, Schema, validate

if TYPE_CHECKING:
    import optuna

OPTUNAS = "hydra_plugins.bert_mtl_optuna.OptunaSweeper"
STUDY_FILE = "study.jsonl"


class SearchConfig(Schema):
    """The keys of hydra/sweeper=optuna."""

    sampler: Literal["tpe", "random"]
    n_trials: Annotated[int, Field(gt=0)]
    n_jobs: Annotated[int, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]
    seeds: tuple[int, ...]
    params: dict[str, str | int | float | bool]

    @property
    def launched(self) -> int:
        """Runs that are handed to the launcher at once."""
        return self.n_jobs * max(1, len(self.seeds))


def search_config(settings: DictConfig) -> SearchConfig:
    """The `hydra.sweeper` of a composed configuration. Raises ConfigError; also where Optuna is not installed."""
    container: Any = OmegaConf.to_container(settings)
    try:
        config = validate({key: value for key, value in container.items() if key != "_target_"}, SearchConfig)
    except ConfigError as error:
        raise ConfigError(each._replace(key=f"hydra.sweeper.{each.key}") for each in error.problems) from None
    import_optuna()
    return config


class Trial(NamedTuple):
    """A point of the search: its number, and its overrides."""

    number: int
    overrides: list[str]


class Search:
    """The study in `folder` of a search for the overrides with the highest value.

    Raises:
        ConfigError: what cannot be searched; the folder has the study of another search.
    """

    def __init__(self, folder: Path, config: SearchConfig, overrides: Sequence[Override]):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.config = config
        self.fixed = [str(each.input_line) for each in overrides if not each.is_sweep_override()]
        self.space = space(overrides)
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
        self.study = _optuna().create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
        )
        asked = [str(each.input_line) for each in overrides]
        told = {"sampler": config.sampler, "seed": config.seed, "seeds": list(config.seeds)}
        asked += [f"hydra.sweeper.{key}={value}" for key, value in told.items()]
        asked = sorted(asked)
        before = self.study.user_attrs.get("asked", asked)
        if before != asked:
            there, here = (" ".join(sorted(set(a) - set(b))) for a, b in ((before, asked), (asked, before)))
            rule = f"be the folder of this very search; it has {there or NOTHING} there and {here or NOTHING} here"
            raise ConfigError([Problem("hydra.sweep.dir", rule, str(folder))])
        self.study.set_user_attr("asked", asked)

    def batches(self) -> Iterator[list[Trial]]:
        """The trials without a value, then new ones up to `n_trials`, `n_jobs` of them at a time."""
        waiting = self._waiting()
        states = _optuna().trial.TrialState
        todo = self.config.n_trials - len(self.study.get_trials(states=(states.COMPLETE,)))
        while todo > 0:
            size = min(self.config.n_jobs, todo)
            numbers, waiting = waiting[:size], waiting[size:]
            numbers += [self._asked() for _ in range(size - len(numbers))]
            yield [self._trial(number) for number in numbers]
            todo -= size

    def _waiting(self) -> list[int]:
        """Trials that were interrupted or failed. One that was killed before it knew its parameters is given up."""
        states, found = _optuna().trial.TrialState, []
        for trial in self.study.get_trials(states=(states.RUNNING,)):
            if set(trial.params) == set(self.space):
                found.append(trial.number)
            else:
                self.study.tell(trial.number, state=states.FAIL)
        return found

    def tell(self, number: int, value: float) -> None:
        """Keeps the value of a trial."""
        self.study.tell(number, value)

    def _asked(self) -> int:
        # A sampler of its own for each trial: a search that goes on does not draw the numbers of its start again.
        self.study.sampler = _sampler(self.config, len(self.study.trials))
        return self.study.ask(self.space).number

    def _trial(self, number: int) -> Trial:
        found = self.study.trials[number].params
        words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in found.items()]
        return Trial(number, [*self.fixed, *words])


def space(overrides: Sequence[Override]) -> dict[str, "optuna.distributions.BaseDistribution"]:
    """Key -> what it may be: a number of an interval (`tag(log,…)`: even in its logarithm) or of a range, or a choice,
    whose values are Hydra's words. Raises ConfigError for what cannot be searched."""
    return {each.get_key_element(): _distribution(each) for each in overrides if each.is_sweep_override()}


def _distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    key, text = override.get_key_element(), override.get_value_string()
    if unknown := sweep.tags - ({"log"} if override.is_interval_sweep() else set()):
        rule = f"have no tag {sorted(unknown)[0]}"
        raise ConfigError([Problem(key, rule, text, ("tag(log,interval(a,b))", "tag(log,int(interval(a,b)))"))])
    try:
        if override.is_choice_sweep():
            return CategoricalDistribution(tuple(override.sweep_string_iterator()))
        if override.is_interval_sweep():
            whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
            of_interval: Any = IntDistribution if whole else FloatDistribution
            return of_interval(sweep.start, sweep.end, log="log" in sweep.tags)
        values = list(sweep.range())
        of_range: Any = IntDistribution if isinstance(values[0], int) else FloatDistribution
        return of_range(values[0], values[-1], step=sweep.step)
    except (ValueError, IndexError) as error:
        raise ConfigError([Problem(key, f"be what can be searched ({error})", text)]) from error


def _sampler(config: SearchConfig, trial: int) -> "optuna.samplers.BaseSampler":
    samplers, seed = _optuna().samplers, int(np.random.SeedSequence([config.seed, trial]).generate_state(1)[0])
    if config.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _optuna().exceptions.ExperimentalWarning)  # of constant_liar, before Optuna 5
        # Trials under way count as bad ones, or a batch would be the same point many times.
        return samplers.TPESampler(seed=seed, constant_liar=True)


def import_optuna() -> None:
    """Raises ConfigError where Optuna is not installed."""
    try:
        _optuna().logging.set_verbosity(_optuna().logging.WARNING)
    except ImportError as error:
        rule = f"be installed (pip install 'bert_mtl[sweep]': {error})"
        raise ConfigError([Problem("hydra/sweeper", rule, "optuna", ("basic",))]) from None


def _optuna() -> Any:
    import optuna

    return optuna

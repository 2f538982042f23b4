"""Training: `python -m bert_mtl.train task=imdb`. Configuration in, run folder out.

Records are built where they are missing, the model starts from pretrained weights, and `bert_mtl.keeper` keeps what a
run is made of: dev scores, the best weights, and a state to resume from.
"""

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import tensorflow as tf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bert_mtl.ahead import ahead
from bert_mtl.atomic import atomic_write
from bert_mtl.attention import training_attention
from bert_mtl.begun import Begun, check_labels, check_replicas, checked_sizes, facts_of, new_model, train_pipeline
from bert_mtl.chief import Chief
from bert_mtl.closing import print_closing
from bert_mtl.config import TrainConfig
from bert_mtl.data_facts import data_facts, save_data_facts
from bert_mtl.devices import make_repeatable, make_strategy, use_xla
from bert_mtl.findings import PartAnswers, answer_metrics
from bert_mtl.keeper import Keeper
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.origin import origin, save_origin
from bert_mtl.packages import data_package, run_package
from bert_mtl.parts import part_pipelines
from bert_mtl.records import load_manifest
from bert_mtl.report import answer_run, write_report
from bert_mtl.runs import (
    Run,
    RunError,
    check_examples,
    open_run,
    part_metrics,
    run_config,
    start_run,
)
from bert_mtl.steps import arguments, make_step
from bert_mtl.sweeps import TrainSweeps, train_job
from bert_mtl.tasks import DataError
from bert_mtl.tracking import Careful, Job, open_tracker
from bert_mtl.tracking.history_file import History
from bert_mtl.vocabulary import make_tokenizer
from conf import entry
from conf.errors import ConfigError, Problem
from data_prep.build import build

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict:
    """Trains a new run in `run.dir`, or goes on with `run.resume`; returns what metrics.json holds.

    Raises:
        ConfigError, DataError, WeightsError, RunError: what is wrong, before any step is taken.
    """
    begun = begin(config)
    run, folders = begun.run, begun.folders
    labelled = {name: folders[name] for name, task in run.tasks.items() if task.labelled}
    with run.chief.company(f"Start all of them again with run.resume={run.folder}"), watched(begun) as tracker:
        keeper = Keeper(run, begun.pipeline, part_pipelines(run, labelled, "dev"), tracker)
        fit(begun, keeper)
        result = run.chief.does(lambda: _finish(begun, keeper, labelled))
        run.chief.does(lambda: _settle(keeper, result))
    if run.chief.here:
        print_closing(run, result, keeper.meter.speeds, list(tracker.missing.values()))
    return result


@contextmanager
def watched(begun: Begun) -> Iterator[Careful]:
    """What keeps the run's history, and shows it by the configured tracker; of several workers the chief's alone."""
    run = begun.run
    if not run.chief.here:
        yield Careful([])
        return
    config, tags = run.config.model_dump(mode="json"), [*run.config.tasks, run.config.data.source]
    config["task_names"] = "+".join(run.config.tasks)  # what dashboards group by
    name, group = run.folder.name, sweep_name()
    job = Job(run.folder, f"{group}/{name}" if group else name, "train", config, tags, group)
    with open_tracker(run.config.tracking, job, beside=[History(run.folder)]) as tracker:
        for folder in begun.folders.values():
            tracker.uses(data_package(folder))
        yield tracker


def _finish(begun: Begun, keeper: Keeper, folders: dict[str, Path]) -> dict:
    """What metrics.json is to hold: answers with the selected weights, and writes the report of them."""
    run, model, best = keeper.run, begun.model, keeper.epochs[keeper.best]
    keeper.selected.bring(model)
    for head, tuned in best["tuned"].items():
        model.heads[head].tuned = tuned
    parts = ("dev", "test") if run.config.train.test else ("dev",)
    answers = _answers(run, model, keeper.tracker, parts) if run.config.train.report else []
    test = {}
    if run.config.train.test:
        tests = [each for each in answers if each.part == "test"]
        test = answer_metrics(model, tests) if answers else part_metrics(model, part_pipelines(run, folders, "test"))
    result = {
        "test": test,
        "dev": best["dev"],
        "score": keeper.score(best["dev"]),
        "best_epoch": keeper.best + 1,
        "epochs": keeper.epochs,
        "data": run.config.data.source,
        "parameters": model.count_params(),
    }
    values = {
        f"{keeper.path(head)}/test_{name}": value for head, found in test.items() for name, value in found.items()
    }
    keeper.tracker.total(values)
    if answers:
        try:
            write_report(run, model, answers, result, keeper.tracker)
        except Exception as error:  # whatever a report fails at, it must not cost the training
            keeper.tracker.note("report.html", "all of it", f"{type(error).__name__}: {error}")
    return result


def _answers(run: Run, model: MultiTaskModel, tracker: Careful, parts: Sequence[str]) -> list[PartAnswers]:
    """What the report is made of; nothing, and a warning, where the texts cannot be had."""
    try:
        return answer_run(run, model, parts)
    except Exception as error:  # as above
        tracker.note("report.html", "all of it", f"{type(error).__name__}: {error}")
        return []


def _settle(keeper: Keeper, result: dict) -> None:
    """What makes the run a finished one. Raises DataError, RunError where it cannot be written even now; the scores are
    printed first."""
    try:
        keeper.selected.settle()
        with atomic_write(keeper.run.folder / "metrics.json") as file:
            file.write(json.dumps(result, indent=1).encode())
    except (DataError, OSError, RunError):
        print_closing(keeper.run, result, keeper.meter.speeds, list(keeper.tracker.missing.values()), lost=True)
        raise
    keeper.tracker.makes(run_package(keeper.run))


def begin(config: TrainConfig) -> Begun:
    """All that comes before the first step of a new run in `run.dir` or of `run.resume`. Raises as `train` does."""
    resume = config.run.resume
    config = run_config(resume) if resume else config
    strategy = make_strategy(config.strategy)
    chief = Chief(strategy)
    with chief.company("Start all of them again."):
        return _begin(config, open_run(resume, chief) if resume else None, strategy, chief)


def _begin(config: TrainConfig, resumed: Run | None, strategy: tf.distribute.Strategy, chief: Chief) -> Begun:
    xla = use_xla(config.strategy, strategy)
    check_replicas(config, strategy.num_replicas_in_sync)
    make_repeatable(config.seed)
    tokenizer = resumed.tokenizer if resumed else make_tokenizer(config.tokenizer, config.model, config.cache_dir)
    sizes = resumed.facts.encoder if resumed else checked_sizes(config, tokenizer)
    attention = training_attention(config, sizes, xla)
    folders = {name: build(config, name, tokenizer) for name in config.tasks}
    manifests = {name: load_manifest(folder) for name, folder in folders.items()}
    run = resumed or start_run(Path(config.run.dir), config, tokenizer, facts_of(sizes, manifests), chief)
    for name, manifest in manifests.items():
        check_examples(run, manifest)
        check_labels(run.tasks[name], manifest)
    pipeline = train_pipeline(run, folders, strategy.num_replicas_in_sync)
    if resumed is None and chief.here:
        save_origin(run.folder, origin(arguments_of_run()))
        save_data_facts(run.folder, data_facts(run, folders, pipeline))
    log.info("%s", pipeline.describe(pipeline.first_epoch))
    with strategy.scope():
        model = new_model(run, pipeline, attention, xla)
    return Begun(run, folders, pipeline, strategy, xla, model)


def fit(begun: Begun, keeper: Keeper) -> None:
    """Runs the epochs that are still to do; one interrupted inside an epoch goes on at its very next step."""
    _, _, pipeline, strategy, xla, model = begun
    keeper.restore(model)
    take = make_step(model, pipeline, strategy, xla)
    block = min(keeper.settings.steps_per_execution, keeper.settings.save_every)
    while not keeper.done:
        keeper.begin_epoch()
        make = functools.partial(arguments, pipeline, keeper.epoch, keeper.offset, strategy, block)
        with closing(keeper), closing(ahead(make)) as calls:
            for steps in calls:
                take(steps)
                keeper.end_steps(len(steps))
            keeper.end_epoch()


def sweep_name() -> str | None:
    """That of the folder of the sweep that this run is a job of."""
    sweeps = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    return Path(HydraConfig.get().sweep.dir).name if sweeps else None


def arguments_of_run() -> list[str] | None:
    """Those of the command line that decide what is trained: folders of configuration and overrides; None within
    another program."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    further = [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
    return [*(f"--config-dir={folder}" for folder in own), *further, *hydra.overrides.task]


def _train_job(config: TrainConfig) -> float:
    """Returns the run's score, which sweepers compare."""
    others = [text for text in HydraConfig.get().overrides.task if not text.startswith("run.resume=")]
    if config.run.resume and others:
        raise ConfigError([Problem("run.resume", "stand alone: the run goes on with its own configuration", others)])
    if config.strategy.kind == "multi_worker" and not config.run.resume:
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            rule = "be another one in a sweep: TensorFlow joins a cluster once a process"
            raise ConfigError([Problem("strategy", rule, "multi_worker")])
        if not any(text.startswith("run.dir=") for text in job.overrides.task):
            rule = "be given with strategy=multi_worker: a folder that all workers share"
            raise ConfigError([Problem("run.dir", rule, config.run.dir)])
    own = config.run.model_copy(update={"dir": str(entry.output_dir())})
    config = config.model_copy(update={"run": own})
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return train_job(config, train)
    return train(config)["score"]


def main() -> None:
    entry.main("train", TrainConfig, _train_job, sweeps=TrainSweeps())


if __name__ == "__main__":
    main()

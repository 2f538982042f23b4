"""Training: `python -m bert_mtl.train task=imdb`. Configuration in, run folder out.

Records are built where they are missing, the model starts from pretrained weights, and `bert_mtl.keeper` keeps what a
run is made of: dev scores, the best weights, and a state to resume from.
"""

import functools
import json
import logging
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bert_mtl.ahead import ahead
from bert_mtl.attention import training_attention
from bert_mtl.checkpoints import load_pretrained
from bert_mtl.chief import Chief
from bert_mtl.config import TrainConfig
from bert_mtl.devices import make_repeatable, make_strategy, use_xla
from bert_mtl.encoder import Attention, BertEncoder, EncoderConfig
from bert_mtl.exits import head_of
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.keeper import Keeper
from bert_mtl.mixing import epoch_examples, quotas, rates
from bert_mtl.multitask import MultiTaskModel, make_model
from bert_mtl.optimization import make_optimizer
from bert_mtl.part_reader import PartReader
from bert_mtl.records import Manifest, atomic_write, load_manifest
from bert_mtl.rules import replica_problems
from bert_mtl.runs import (
    Facts,
    Run,
    check_examples,
    encoder_config,
    load_variables,
    open_run,
    part_metrics,
    run_config,
    start_run,
    weights_of,
)
from bert_mtl.steps import arguments, make_step
from bert_mtl.sweeps import TrainSweeps, train_job
from bert_mtl.tasks import DataError, Task
from bert_mtl.teachers import with_teachers
from bert_mtl.tokenization import Tokenizer
from bert_mtl.tracking import make_tracker
from bert_mtl.vocabulary import make_tokenizer, pretrained_folder
from bert_mtl.weighting import make_weighting
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
    parts = {part: part_pipelines(run, labelled, part) for part in ("dev", "test")}
    with run.chief.company(f"Start all of them again with run.resume={run.folder}"), make_tracker(run) as track:
        keeper = Keeper(run, begun.pipeline, parts["dev"], track)
        fit(begun, keeper)
        result = run.chief.does(lambda: _finish(begun.model, keeper, parts["test"]))
    if run.chief.here:
        print(closing_words(run, result))
    return result


def _finish(model: MultiTaskModel, keeper: Keeper, test: dict[str, Pipeline]) -> dict:
    """Answers the test parts with the selected weights, and writes metrics.json."""
    run, best = keeper.run, keeper.epochs[keeper.best]
    load_variables(run.weights, weights_of(model))
    for head, tuned in best["tuned"].items():
        model.heads[head].tuned = tuned
    result = {
        "test": part_metrics(model, test) if run.config.train.test else {},
        "dev": best["dev"],
        "score": keeper.score(best["dev"]),
        "best_epoch": keeper.best + 1,
        "epochs": keeper.epochs,
        "data": run.config.data.source,
    }
    values = {f"test_{head}_{name}": v for head, scores in result["test"].items() for name, v in scores.items()}
    keeper.track(values, keeper.step)
    with atomic_write(run.folder / "metrics.json") as file:
        file.write(json.dumps(result, indent=1).encode())
    return result


class Begun(NamedTuple):
    """A run before its first step: the records' `folders` by task, the mixture it learns from, where its steps run,
    whether `xla` compiles them, and the model."""

    run: Run
    folders: dict[str, Path]
    pipeline: Pipeline
    strategy: tf.distribute.Strategy
    xla: bool
    model: MultiTaskModel


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
    run = resumed or start_run(Path(config.run.dir), config, tokenizer, _facts(sizes, manifests), chief)
    for name, manifest in manifests.items():
        check_examples(run, manifest)
        check_labels(run.tasks[name], manifest)
    pipeline = train_pipeline(run, folders, strategy.num_replicas_in_sync)
    log.info("%s", pipeline.describe(pipeline.first_epoch))
    with strategy.scope():
        model = _new_model(run, pipeline, attention, xla)
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


def check_replicas(config: TrainConfig, replicas: int) -> None:
    """Raises ConfigError for what does not work on so many replicas."""
    batch_size, found = config.train.batch_size, replica_problems(config) if replicas > 1 else []
    if batch_size % replicas:
        found.append(Problem("train.batch_size", f"be a multiple of the {replicas} replicas", batch_size))
    if found:
        raise ConfigError(found)


def checked_sizes(config: TrainConfig, tokenizer: Tokenizer) -> EncoderConfig:
    """The encoder's sizes. Raises ConfigError where the tokenizer, `model.trainable` or exits go beyond them."""
    weights = pretrained_folder(config.model, config.cache_dir)
    sizes = encoder_config(config.model, weights, tokenizer.vocab_size, len(config.tasks))
    length, found = config.tokenizer.max_length, []
    if length > sizes.max_positions:
        found.append(Problem("tokenizer.max_length", f"be at most the model's {sizes.max_positions} positions", length))
    keys = {"model.trainable": config.model.trainable}
    keys |= {f"tasks.{name}.trainable": task.trainable for name, task in config.tasks.items()}
    for key, trainable in keys.items():
        if trainable.startswith("last:") and int(trainable.removeprefix("last:")) > sizes.num_layers:
            found.append(Problem(key, f"name at most the model's {sizes.num_layers} layers", trainable))
    for layer in (number for number in config.model.exits if number >= sizes.num_layers):
        rule = f"name layers below the model's last, number {sizes.num_layers}"
        found.append(Problem("model.exits", rule, layer, range(1, sizes.num_layers)))
    if tokenizer.vocab_size > sizes.vocab_size:
        rule = f"hold at most the {sizes.vocab_size} pieces of model.weights"
        found.append(Problem("tokenizer.vocab", rule, tokenizer.vocab_size))
    if found:
        raise ConfigError(found)
    return sizes


def check_labels(task: Task, manifest: Manifest) -> None:
    """Raises DataError where a head has nothing to learn from, or nothing to be compared by."""
    own = [head for head in task.heads.values() if head.settings.labelled and head.level != "mask"]
    for head in (each for each in own if each.needs_label):
        for part in ("train", "dev"):
            if not any(manifest.parts[part].statistics[head.name].values()):
                place = f"the {part} part of task {task.name} ({manifest.parts[part].examples:,} examples)"
                raise DataError(f"{place} must have labels for its head {head.name}; got none.")


def _facts(sizes: EncoderConfig, manifests: dict[str, Manifest]) -> Facts:
    statistics = {h: s for manifest in manifests.values() for h, s in manifest.parts["train"].statistics.items()}
    return Facts(
        encoder=sizes,
        pairs=[name for name, manifest in manifests.items() if manifest.pair],
        data={name: manifest.data for name, manifest in manifests.items()},
        statistics=statistics,
    )


def part_pipelines(run: Run, folders: dict[str, Path], part: str, **changes: Any) -> dict[str, Pipeline]:
    """One part of each task, every task by itself, for evaluation."""
    config = run.config.model_copy(update=changes)
    return {
        name: Pipeline(
            readers=(reader := _reader(run, run.tasks[name], folder, part),),
            input=config.input,
            batch_size=config.train.eval_batch_size,
            counts=(reader.examples,),
        )
        for name, folder in folders.items()
    }


def train_pipeline(run: Run, folders: dict[str, Path], replicas: int) -> Pipeline:
    """The mixture of all tasks' train parts. Raises ConfigError where it has fewer steps than one update takes."""
    config = run.config
    readers = with_teachers(run, [_reader(run, run.tasks[name], folder, "train") for name, folder in folders.items()])
    readers = tuple(replace(reader, seed=config.seed, shuffle=True) for reader in readers)
    sizes = {reader.task.name: reader.examples for reader in readers}
    shares = rates(config.mixing, sizes, epoch=0, epochs=config.train.epochs)
    counts = tuple(quotas(shares, epoch_examples(config.mixing, sizes)).tolist())
    pipeline = Pipeline(readers, config.input, config.train.batch_size, counts, config.seed, True, replicas)
    steps = config.train.epochs * pipeline.steps(pipeline.first_epoch)
    if config.optimizer.accumulate > steps:
        rule = f"be at most the run's {steps} steps"
        raise ConfigError([Problem("optimizer.accumulate", rule, config.optimizer.accumulate)])
    return pipeline


def _reader(run: Run, task: Task, folder: Path, part: str) -> PartReader:
    return PartReader(folder, part, task, run.tokenizer, run.config.input, run.config.data)


def _new_model(run: Run, pipeline: Pipeline, attention: Attention | None, xla: bool) -> MultiTaskModel:
    config = run.config
    keras.utils.set_random_seed(config.seed)  # teachers have drawn from it
    encoder = BertEncoder(run.facts.encoder, dtype=config.model.dtype, seed=config.seed, training_attention=attention)
    # A state to resume from holds every weight.
    weights = None if run.state.exists() else pretrained_folder(config.model, config.cache_dir)
    if weights is not None:
        report = load_pretrained(encoder, weights)
        log.info(
            "pretrained weights: %s, %d variables from %s", report.format, len(report.loaded), config.model.weights
        )
        if report.missing:
            log.warning("not in the pretrained weights, so left random: %s", ", ".join(report.missing))
        if report.unexpected:
            log.info("in the pretrained weights, but of no use here: %s", ", ".join(report.unexpected))
    model = make_model(config.model, encoder, run.tasks, config.seed)
    base = {name: head.settings.weight for name, head in model.heads.items()}
    last = encoder.transformer_layers[-1].trainable_variables
    model.teachers_weight, model.r_drop = config.distill.weight, config.train.r_drop
    model.weighting = make_weighting(config.weighting, base, config.seed, last or None)
    steps, depth = pipeline.steps(pipeline.first_epoch), run.facts.encoder.num_layers
    model.optimizer = make_optimizer(config.optimizer, config.train.epochs, steps, depth)
    model.optimizer.build([*encoder.trainable_variables, *model.head_variables], together=xla)
    return model


def closing_words(run: Run, result: dict) -> str:
    """What a user reads at the end: the scores, where the run is, and what to do next."""
    heads = {head.name: head for task in run.tasks.values() for head in task.heads.values()}
    epochs, scores = len(result["epochs"]), []
    for name in result["dev"]:  # exits too
        metric = heads[head_of(name)].metric
        found = {part: result[part][name][metric] for part in ("test", "dev") if result[part].get(name)}
        if found:
            scores.append(f"{name}: {', '.join(f'{part} {metric} {value:.4f}' for part, value in found.items())}")
    folder = shlex.quote(str(run.folder))
    second = ' text_b="The end made up for a slow start."' if run.facts.pairs else ""
    return "\n".join(
        [
            "",
            *scores,
            f"data: {result['data']} · best epoch: {result['best_epoch']} of {epochs} · run: {run.folder}",
            "",
            "Next:",
            f'  python -m bert_mtl.predict run={folder} text="A slow start, but I loved the ending!"{second}',
            f"  python -m bert_mtl.evaluate run={folder}",
            f"  python -m bert_mtl.export run={folder} bundle=bundles/{'-'.join(run.config.tasks)}",
        ]
    )


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

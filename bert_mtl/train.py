"""Training: `python -m bert_mtl.train task=imdb`. Configuration in, run folder out.

Records are built where they are missing, the model starts from pretrained weights, Keras' fit does the steps, and
`bert_mtl.keeper` keeps what a run is made of: dev scores, the best weights, and a state to resume from.
"""

import json
import logging
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import tensorflow as tf
from hydra.core.hydra_config import HydraConfig

from bert_mtl.checkpoints import load_pretrained
from bert_mtl.config import TrainConfig
from bert_mtl.devices import make_repeatable, make_strategy, use_xla
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.keeper import Keeper
from bert_mtl.multitask import MultiTaskModel, make_losses, make_model, training_triple
from bert_mtl.optimization import make_optimizer
from bert_mtl.records import atomic_write
from bert_mtl.runs import (
    Facts,
    Run,
    check_examples,
    encoder_config,
    everything_of,
    load_variables,
    open_run,
    part_metrics,
    start_run,
    weights_of,
)
from bert_mtl.tokenization import Tokenizer
from bert_mtl.tracking import make_tracker
from bert_mtl.vocabulary import make_tokenizer, pretrained_folder
from conf import entry
from conf.errors import ConfigError, Problem
from data_prep.build import build

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict:
    """Trains a new run in `run.dir`, or goes on with `run.resume`; returns what metrics.json holds.

    Raises:
        ConfigError, DataError, WeightsError, RunError: what is wrong, before any step is taken.
    """
    resumed = open_run(config.run.resume) if config.run.resume else None
    config = resumed.config if resumed else config
    strategy = make_strategy(config.strategy)
    xla = use_xla(config.strategy, strategy)
    check_replicas(config, strategy.num_replicas_in_sync)
    make_repeatable(config.seed, xla)
    tokenizer = resumed.tokenizer if resumed else make_tokenizer(config.tokenizer, config.model, config.cache_dir)
    sizes = resumed.facts.encoder if resumed else checked_sizes(config, tokenizer)
    parts = _pipelines(config, tokenizer, strategy.num_replicas_in_sync)
    manifest = parts["train"].manifest
    run = resumed or start_run(
        Path(config.run.dir), config, tokenizer, Facts(sizes, pair=manifest.pair, data=manifest.data)
    )
    check_examples(run, manifest)
    with strategy.scope():
        model = _compiled(run, parts["train"], xla)
    with make_tracker(config, run.folder) as track:
        keeper = Keeper(run, parts["dev"], parts["train"].steps_per_epoch, track)
        fit(model, parts["train"], keeper, strategy)
        load_variables(run.weights, weights_of(model))
        result = {
            "test": part_metrics(model, parts["test"]),
            "dev": keeper.epochs[keeper.best]["dev"],
            "best_epoch": keeper.best + 1,
            "epochs": keeper.epochs,
            "data": config.data.source,
        }
        track({f"test_{head}_{name}": v for head, s in result["test"].items() for name, v in s.items()}, keeper.step)
    with atomic_write(run.folder / "metrics.json") as file:
        file.write(json.dumps(result, indent=1).encode())
    print(closing_words(run, result))
    return result


def fit(model: MultiTaskModel, pipeline: Pipeline, keeper: Keeper, strategy: tf.distribute.Strategy) -> None:
    """Runs the epochs that are left: first the rest of an interrupted one, then whole ones."""
    per_epoch, epochs = pipeline.steps_per_epoch, keeper.run.config.train.epochs
    step = keeper.restore(model)
    while step < epochs * per_epoch and not keeper.stop:
        epoch, offset = divmod(step, per_epoch)
        last = epoch + 1 if offset else epochs

        def steps(_=None, epoch=epoch, offset=offset, last=last) -> tf.data.Dataset:
            return pipeline.dataset(epoch, offset, last - epoch).map(training_triple)

        data = steps() if pipeline.replicas == 1 else strategy.distribute_datasets_from_function(steps)
        model.fit(
            data,
            initial_epoch=epoch,
            epochs=last,
            steps_per_epoch=per_epoch - offset,
            callbacks=[keeper],
            verbose=keeper.verbose,
            shuffle=False,  # the stream is shuffled already
        )
        step = last * per_epoch
        if model.optimizer.use_ema:  # Keras ends fit by putting the averages in the place of the weights
            load_variables(keeper.run.state, everything_of(model))


def check_replicas(config: TrainConfig, replicas: int) -> None:
    """Raises ConfigError for what does not work on so many replicas."""
    accumulate, batch_size, found = config.optimizer.accumulate, config.train.batch_size, []
    if replicas > 1 and accumulate > 1:
        found.append(Problem("optimizer.accumulate", f"be 1 on {replicas} replicas", accumulate))
    if replicas > 1 and config.strategy.xla is True:
        found.append(Problem("strategy.xla", f"not be true on {replicas} replicas", True, ("auto", "false")))
    if batch_size % replicas:
        found.append(Problem("train.batch_size", f"be a multiple of the {replicas} replicas", batch_size))
    if found:
        raise ConfigError(found)


def checked_sizes(config: TrainConfig, tokenizer: Tokenizer) -> EncoderConfig:
    """The encoder's sizes. Raises ConfigError where the tokenizer or `model.trainable` go beyond them."""
    sizes = encoder_config(config.model, pretrained_folder(config.model, config.cache_dir), tokenizer.vocab_size)
    length, trainable, found = config.tokenizer.max_length, config.model.trainable, []
    if length > sizes.max_positions:
        found.append(Problem("tokenizer.max_length", f"be at most the model's {sizes.max_positions} positions", length))
    if trainable.startswith("last:") and int(trainable.removeprefix("last:")) > sizes.num_layers:
        found.append(Problem("model.trainable", f"name at most the model's {sizes.num_layers} layers", trainable))
    if tokenizer.vocab_size > sizes.vocab_size:
        rule = f"hold at most the {sizes.vocab_size} pieces of model.weights"
        found.append(Problem("tokenizer.vocab", rule, tokenizer.vocab_size))
    if found:
        raise ConfigError(found)
    return sizes


def _pipelines(config: TrainConfig, tokenizer: Tokenizer, replicas: int) -> dict[str, Pipeline]:
    folder = build(config, next(iter(config.tasks)), tokenizer)
    dev = Pipeline(folder, "dev", tokenizer, config.input, config.data, config.train.eval_batch_size)
    size = config.train.batch_size
    train = replace(dev, part="train", batch_size=size, seed=config.seed, shuffle=True, replicas=replicas)
    steps = config.train.epochs * train.steps_per_epoch
    if config.optimizer.accumulate > steps:
        rule = f"be at most the run's {steps} steps"
        raise ConfigError([Problem("optimizer.accumulate", rule, config.optimizer.accumulate)])
    return {"train": train, "dev": dev, "test": replace(dev, part="test")}


def _compiled(run: Run, pipeline: Pipeline, xla: bool) -> MultiTaskModel:
    config = run.config
    encoder = BertEncoder(run.facts.encoder, dtype=config.model.dtype, seed=config.seed)
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
    model = make_model(config.model, encoder, config.tasks, config.seed)
    model.compile(
        make_optimizer(config.optimizer, config.train.epochs * pipeline.steps_per_epoch),
        loss=make_losses(config.tasks, {name: pipeline.manifest for name in config.tasks}),
        weighted_metrics={head: ["accuracy"] for head in model.head_layers},
        jit_compile=xla,
    )
    model.optimizer.build(model.trainable_variables)
    # Now, from one replica's batch: fit would try with a batch of all replicas, and fail.
    with closing(pipeline.batches()) as batches:
        model._symbolic_build(data_batch=training_triple(next(batches)))
    return model


def closing_words(run: Run, result: dict) -> str:
    """What a user reads at the end: the scores, where the run is, and what to do next."""
    dev, epochs = result["dev"], len(result["epochs"])
    scores = [
        f"{head}: test accuracy {test['accuracy']:.2%}, macro-F1 {test['macro_f1']:.2%} "
        f"(dev accuracy {dev[head]['accuracy']:.2%})"
        for head, test in result["test"].items()
    ]
    folder = shlex.quote(str(run.folder))
    return "\n".join(
        [
            "",
            *scores,
            f"data: {result['data']} · best epoch: {result['best_epoch']} of {epochs} · run: {run.folder}",
            "",
            "Next:",
            f'  python -m bert_mtl.predict run={folder} text="A slow start, but I loved the ending!"',
            f"  python -m bert_mtl.evaluate run={folder}",
            f"  python -m bert_mtl.export run={folder} bundle=bundles/{'-'.join(run.config.tasks)}",
        ]
    )


def _train_job(config: TrainConfig) -> None:
    others = [text for text in HydraConfig.get().overrides.task if not text.startswith("run.resume=")]
    if config.run.resume and others:
        raise ConfigError([Problem("run.resume", "stand alone: the run goes on with its own configuration", others)])
    own = config.run.model_copy(update={"dir": str(entry.output_dir())})
    train(config.model_copy(update={"run": own}))


def main() -> None:
    entry.main("train", TrainConfig, _train_job)


if __name__ == "__main__":
    main()

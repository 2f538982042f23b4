"""What a training begins with: checks of a configuration against weights and data, the mixture, and the new model."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from bert_mtl.checkpoints import load_pretrained
from bert_mtl.config import TrainConfig
from bert_mtl.encoder import Attention, BertEncoder, EncoderConfig
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.mixing import epoch_examples, quotas, rates
from bert_mtl.multitask import MultiTaskModel, make_model
from bert_mtl.optimization import make_optimizer
from bert_mtl.parts import part_reader
from bert_mtl.records import Manifest
from bert_mtl.rules import replica_problems
from bert_mtl.runs import Facts, Run, encoder_config
from bert_mtl.tasks import DataError, Task
from bert_mtl.teachers import with_teachers
from bert_mtl.tokenization import Tokenizer
from bert_mtl.vocabulary import pretrained_folder
from bert_mtl.weighting import make_weighting
from conf.errors import ConfigError, Problem

log = logging.getLogger(__name__)


class Begun(NamedTuple):
    """A run before its first step: the records' `folders` by task, the mixture it learns from, where its steps run,
    whether `xla` compiles them, and the model."""

    run: Run
    folders: dict[str, Path]
    pipeline: Pipeline
    strategy: tf.distribute.Strategy
    xla: bool
    model: MultiTaskModel


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


def facts_of(sizes: EncoderConfig, manifests: dict[str, Manifest]) -> Facts:
    statistics = {h: s for manifest in manifests.values() for h, s in manifest.parts["train"].statistics.items()}
    return Facts(
        encoder=sizes,
        pairs=[name for name, manifest in manifests.items() if manifest.pair],
        data={name: manifest.data for name, manifest in manifests.items()},
        statistics=statistics,
    )


def train_pipeline(run: Run, folders: dict[str, Path], replicas: int) -> Pipeline:
    """The mixture of all tasks' train parts. Raises ConfigError where it has fewer steps than one update takes."""
    config = run.config
    readers = with_teachers(
        run, [part_reader(run, run.tasks[name], folder, "train") for name, folder in folders.items()]
    )
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


def new_model(run: Run, pipeline: Pipeline, attention: Attention | None, xla: bool) -> MultiTaskModel:
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

"""A run's folder: what a training writes, and how it is read again.

config.yaml  run.json  tokenizer/  train.log  metrics.json
weights.safetensors  the selected epoch's
tuned.json           what heads chose on dev with these weights
state.safetensors    what it takes to resume
taught.safetensors   what teachers answered to the train parts
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from bert_mtl.answers import answer_part
from bert_mtl.atomic import atomic_write
from bert_mtl.checkpoints import read_encoder_config
from bert_mtl.chief import ALONE, Chief
from bert_mtl.config import ModelConfig, TrainConfig
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.exits import head_of
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.multitask import MultiTaskModel, make_model
from bert_mtl.records import Manifest
from bert_mtl.tasks import Task, make_tasks
from bert_mtl.tokenization import Tokenizer, load_tokenizer
from bert_mtl.weights import WeightsError
from conf.entry import ConfigError, Problem, compose, validate

log = logging.getLogger(__name__)


class RunError(Exception):
    """A run's folder is missing, unfinished or does not fit."""

    user_error = True


@dataclass(frozen=True)
class Facts:
    """What a run found at its start.

    Attributes:
        encoder: sizes.
        pairs: tasks that read pairs.
        data: task -> fingerprint of its examples.
        statistics: head -> those of its train part's labels.
    """

    encoder: EncoderConfig
    pairs: list[str]
    data: dict[str, str]
    statistics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """A folder that `bert_mtl.train` wrote; of several workers the `chief` alone writes to it."""

    folder: Path
    config: TrainConfig
    tokenizer: Tokenizer
    facts: Facts
    chief: Chief = ALONE

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Its tasks, whose heads know the train part's statistics."""
        return make_tasks(self.config.tasks, self.facts.statistics)

    @property
    def tuned(self) -> Path:
        return self.folder / "tuned.json"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def taught(self) -> Path:
        return self.folder / "taught.safetensors"

    @property
    def state(self) -> Path:
        return self.folder / "state.safetensors"


def run_config(folder: str | Path) -> TrainConfig:
    """The configuration of the run in `folder`, read without TensorFlow. Raises RunError where there is none."""
    folder = Path(folder)
    if not (folder / "config.yaml").exists():
        near = sorted(folder.parent.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)[-10:]
        raise RunError(
            str(Problem("run", "be a folder that bert_mtl.train wrote", str(folder), [str(p.parent) for p in near]))
        )
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    try:
        return validate(stored, TrainConfig)
    except ConfigError:
        return validate(_completed(stored, folder), TrainConfig)


def _completed(stored: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of a run of an earlier version, with the defaults of the keys that it did not know."""
    added, known = [], compose("train", [], TrainConfig).model_dump(mode="json")
    for section, values in known.items():
        if section != "tasks" and isinstance(values, dict) and isinstance(stored.get(section), dict):
            new = {key: value for key, value in values.items() if key not in stored[section]}
            stored[section] |= new
            added += [f"{section}.{key}={json.dumps(value)}" for key, value in new.items()]
    if added:
        log.warning("%s is of an earlier version; what it does not say is taken to be %s", folder, " ".join(added))
    return stored


def open_run(folder: str | Path, chief: Chief = ALONE) -> Run:
    """The run in `folder`. Raises RunError where there is none."""
    folder, config = Path(folder), run_config(folder)
    facts = json.loads((folder / "run.json").read_text())
    facts = Facts(EncoderConfig(**facts.pop("encoder")), **facts)
    return Run(folder, config, load_tokenizer(folder / "tokenizer"), facts, chief)


def start_run(folder: Path, config: TrainConfig, tokenizer: Tokenizer, facts: Facts, chief: Chief = ALONE) -> Run:
    """Writes all of a run but its weights, so that it can be opened and resumed from now on.

    Raises:
        RunError: the folder holds a run already; or the chief's configuration is another than this worker's.
    """
    theirs = chief.does(lambda: _write_run(folder, config, tokenizer, facts))
    if other := _unlike(config.model_dump(mode="json"), theirs["config"]):
        raise RunError(f"all workers must have the same configuration; {', '.join(other)} differ from the chief's.")
    return Run(folder, config, tokenizer, replace(facts, data=theirs["data"]), chief)


def _write_run(folder: Path, config: TrainConfig, tokenizer: Tokenizer, facts: Facts) -> dict[str, Any]:
    """Returns what other workers compare with: the configuration, and the fingerprints of the examples."""
    if (folder / "config.yaml").exists():
        raise RunError(
            f"run.dir must be a new folder; got {folder}, which holds a run. Go on with run.resume={folder}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer")
    with atomic_write(folder / "run.json") as file:
        file.write(json.dumps(asdict(facts), indent=1).encode())
    with atomic_write(folder / "config.yaml") as file:
        once = config.model_copy(update={"data": config.data.model_copy(update={"rebuild": False})})
        file.write(yaml.safe_dump(once.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode())
    return {"config": config.model_dump(mode="json"), "data": facts.data}


def _unlike(own: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Sections of two workers' configurations that differ; folders and builders of records may."""
    return [key for key in own if key not in ("cache_dir", "data", "run") and own[key] != theirs[key]]


def check_examples(run: Run, manifest: Manifest) -> None:
    """Raises RunError where the task's data is not what the run began with: dev and test rows could be train rows."""
    began = run.facts.data[manifest.task]
    if manifest.data != began:
        raise RunError(
            f"the data of task {manifest.task} must be what {run.folder} began with; its fingerprint was "
            f"{began[:12]}, got {manifest.data[:12]}. Start a new run."
        )


def encoder_config(model: ModelConfig, weights: Path | None, vocab_size: int, tasks: int) -> EncoderConfig:
    """Sizes of the encoder: those of the pretrained weights, or the configured ones for a new model of `tasks`."""
    sizes = read_encoder_config(weights) if weights is not None else None
    if model.size is not None:
        sizes = EncoderConfig(vocab_size=vocab_size, **model.size.model_dump())
    if sizes is None:
        raise WeightsError(
            f"model.weights must tell the sizes of BERT; got {weights} without them. "
            "Put its bert_config.json or config.json beside it."
        )
    return replace(
        sizes,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        pooler=model.pooling == "cls",
        tasks=tasks,
        adapters=model.adapters,
        adapter_dim=model.adapter_dim,
        task_embedding=model.task_embedding,
    )


def load_model(run: Run, dtype: str | None = None) -> MultiTaskModel:
    """The run's model with its selected weights and what was tuned with them, of another type than the run's where
    `dtype` names one. Raises RunError where there are none."""
    if not run.weights.exists():
        raise RunError(
            f"{run.folder} has no weights yet: its training has not finished an epoch. "
            f"Continue it with python -m bert_mtl.train run.resume={run.folder}"
        )
    encoder = BertEncoder(run.facts.encoder, dtype=dtype or run.config.model.dtype)
    model = make_model(run.config.model, encoder, run.tasks, seed=0)
    load_variables(run.weights, weights_of(model))
    if run.tuned.exists():
        for head, found in json.loads(run.tuned.read_text()).items():
            model.heads[head].tuned = found
    return model


def part_metrics(
    model: MultiTaskModel, pipelines: Mapping[str, Pipeline], tune: bool = False
) -> dict[str, dict[str, float]]:
    """Metrics by head (also at exits: `MultiTaskModel.name_at`) of one part of each task, such as
    `{"imdb": {"accuracy": 0.9, …}}`; with `tune`, heads choose their thresholds on it first."""
    found = {}
    for pipeline in pipelines.values():
        for name, answered in answer_part(model, pipeline).items():
            head = model.heads[head_of(name)]
            if tune and name in model.heads:
                head.tuned = head.tune(answered.answers, answered.labels)
            found[name] = head.metrics(answered.answers, answered.labels) if len(answered.index) else {}
    return found


def weights_of(model: MultiTaskModel) -> dict[str, Any]:
    """The weights of encoder, heads and exits by path: what a finished run needs."""
    layers = [model.encoder, *model.head_layers.values(), *model.exits]
    return {variable.path: variable for layer in layers for variable in layer.weights}


def everything_of(model: keras.Model) -> dict[str, Any]:
    """All that a training step reads and writes: weights, dropout seeds, optimizer, running metrics."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables, "metric": model.metrics_variables}
    # Not by path: Keras numbers seeds and optimizers through, so that a second model of a process has others.
    return {f"{group}/{i}/{v.name}": v for group, variables in groups.items() for i, v in enumerate(variables)}


def save_variables(path: Path, variables: dict[str, Any], facts: dict[str, Any] | None = None) -> None:
    """Writes variables and JSON `facts` as one safetensors file, atomically. Raises DataError if the disk is full."""
    arrays = {name: np.array(keras.ops.convert_to_numpy(variable), order="C") for name, variable in variables.items()}
    with atomic_write(path) as file:
        file.write(save(arrays, {"facts": json.dumps(facts or {})}))


def load_variables(path: Path, variables: dict[str, Any]) -> None:
    """Assigns every variable from a safetensors file. Raises RunError naming what is missing or of another shape."""
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read ({error}).") from error
    wrong = [
        f"{name} {tuple(variable.shape)} (in the file: {arrays[name].shape if name in arrays else 'missing'})"
        for name, variable in variables.items()
        if name not in arrays or arrays[name].shape != tuple(variable.shape)
    ]
    if wrong:
        raise RunError(f"{path} must fit the model; got other shapes for {'; '.join(wrong[:5])}.")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def read_facts(path: Path) -> dict[str, Any]:
    """The `facts` that `save_variables` wrote."""
    try:
        with safe_open(path, "numpy") as file:
            return json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}).") from error

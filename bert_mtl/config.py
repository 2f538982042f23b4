"""The typed schema of the Hydra tree in `conf/`: what preparing data and training are handed.

Defaults and explanations live in the YAML files; types and bounds live here, impossible combinations in
`bert_mtl.rules`, what commands on finished runs are handed in `bert_mtl.commands`.
"""

import importlib
import re
from typing import Annotated, Literal

from omegaconf import OmegaConf
from pydantic import AfterValidator, Field, PlainValidator, PositiveFloat, PositiveInt, SerializeAsAny

from bert_mtl.kinds import KINDS, HeadSettings, head_settings
from bert_mtl.rules import task_problems, text_problems, training_problems
from conf.entry import Problem, Schema
from conf.explain import Variants

PARTS = ("train", "dev", "test")
Part = Literal["train", "dev", "test"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as NumPy takes them
Filled = Annotated[str, Field(min_length=1)]  # a text that is not empty

OmegaConf.register_new_resolver(
    "first", lambda *values: next(value for value in values if value is not None), replace=True
)
OmegaConf.register_new_resolver("task_names", lambda tasks: "+".join(tasks), replace=True)


def _trainable(value: str) -> str:
    if value not in ("all", "heads") and not re.fullmatch(r"last:[1-9]\d*", value):
        raise ValueError("be all, heads or last:<n> with n of at least 1")
    return value


def _excluded(value: str) -> str:
    if not re.fullmatch(r"dev|test|[^.]+\.(train|dev|test)", value):
        raise ValueError("name dev, test, or a part of another task such as imdb.test")
    return value


def _imported(value: str) -> str:
    try:
        importlib.import_module(value)
    except Exception as error:  # a module of the user's own may fail in any way
        raise ValueError(f"name a Python module that can be imported ({type(error).__name__}: {error})") from error
    return value


Trainable = Annotated[str, AfterValidator(_trainable)]
Plugin = Annotated[str, AfterValidator(_imported)]
HeadConfig = Annotated[SerializeAsAny[HeadSettings], PlainValidator(head_settings), Variants(KINDS)]


class SourceConfig(Schema):
    """Where the examples of a task are read from.

    `{part}` in `path`, `url` and `member` stands for what the source calls each of its parts, as `parts` says.
    """

    format: Literal["aclimdb", "conll", "csv", "folder", "jsonl", "slotgated", "text", "trec", "tsv"]
    path: str | dict[str, str] | None = None
    member: str | None = None
    parts: dict[Part, str | list[str]] | None = None
    columns: dict[str, str | int | list[str | int]] = {}
    labels: dict[str, dict[str, str]] = {}
    local: str | None = None
    url: str | None = None
    sha256: str | dict[str, str] | None = None
    bytes: PositiveInt | None = None


class TaskConfig(Schema):
    license: str = "not stated"
    link: str | None = None
    trainable: Trainable = "all"
    limit: PositiveInt | None = None
    heads: Annotated[dict[str, HeadConfig], Field(min_length=1)]
    sources: Annotated[dict[Literal["sample", "full"], SourceConfig], Field(min_length=1)]
    exclude: list[Annotated[str, AfterValidator(_excluded)]] = []


class DataConfig(Schema):
    source: Literal["sample", "full"]
    path: str | None
    limit: PositiveInt | None
    seed: Seed
    dev_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    shard_size: PositiveInt
    workers: int
    backend: Literal["loky", "threading", "dask", "ray"]
    rebuild: bool


class SizeConfig(Schema):
    hidden_dim: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    intermediate_dim: PositiveInt
    max_positions: PositiveInt


class ModelConfig(Schema):
    weights: Filled | None
    pooling: Literal["mean", "cls"]
    dropout: Fraction
    attention_dropout: Fraction
    attention: Literal["auto", "flash", "plain"]
    trainable: Trainable
    adapters: Literal["none", "bottleneck", "layer_norm"]
    adapter_dim: PositiveInt
    task_embedding: bool
    exits: list[PositiveInt]
    dtype: Literal["float32", "mixed_bfloat16"]
    size: SizeConfig | None


class TokenizerConfig(Schema):
    kind: Literal["wordpiece", "sentencepiece"]
    vocab: str | None
    lowercase: bool
    max_length: Annotated[int, Field(ge=8)]
    truncation: Literal["head", "tail", "head_tail"]


class InputConfig(Schema):
    kind: Literal["tfrecord", "generator", "textline"]
    packing: Literal["packed", "none"]
    row_length: Annotated[int, Field(ge=8)] | None
    window: PositiveInt
    pad_to: PositiveInt


class MixingConfig(Schema):
    kind: Literal["proportional", "uniform", "temperature", "annealed", "explicit", "dev_score"]
    cap: PositiveInt | None
    temperature: PositiveFloat
    rates: dict[str, float] | None
    targets: dict[str, PositiveFloat] | None
    epoch_examples: PositiveInt | None


class WeightingConfig(Schema):
    kind: Literal["static", "uncertainty", "dwa", "gradnorm", "pcgrad", "gradvac"]
    temperature: PositiveFloat
    alpha: Annotated[float, Field(ge=0)]
    learning_rate: PositiveFloat
    beta: Annotated[float, Field(gt=0, le=1)]


class OptimizerConfig(Schema):
    learning_rate: PositiveFloat
    head_learning_rate: PositiveFloat | None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    warmup_fraction: Fraction
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: PositiveFloat | None
    accumulate: PositiveInt
    ema: Annotated[float, Field(gt=0, lt=1)] | None


class StrategyConfig(Schema):
    kind: Literal["auto", "one_device", "mirrored", "multi_worker"]
    devices: Annotated[list[str], Field(min_length=1)] | None
    xla: bool | Literal["auto"]
    cluster: Literal["auto", "tf_config", "slurm", "kubernetes"]
    workers: PositiveInt | None
    port: Annotated[int, Field(gt=0, lt=2**16)]
    service: Filled | None
    timeout: PositiveInt


class TrackingConfig(Schema):
    kind: Literal["none", "tensorboard", "wandb"]
    project: Filled
    entity: Filled | None
    group: Filled | None
    mode: Literal["auto", "online", "offline"]
    files: bool
    every: PositiveInt
    samples: Annotated[int, Field(ge=0)]
    peak: PositiveFloat | None
    timeout: PositiveInt


class RunConfig(Schema):
    dir: Filled
    resume: Filled | None


class DistillConfig(Schema):
    teachers: list[Filled]
    weight: Annotated[float, Field(gt=0, le=1)]


class TrainSettings(Schema):
    epochs: PositiveInt
    batch_size: PositiveInt
    eval_batch_size: PositiveInt
    select: Literal["dev", "last"]
    patience: PositiveInt | None
    save_every: PositiveInt
    steps_per_execution: PositiveInt
    r_drop: Annotated[float, Field(ge=0)]
    test: bool
    report: bool


class PrepareConfig(Schema):
    """`python -m data_prep.build`: everything that decides what the records hold."""

    plugins: list[Plugin]  # before the tasks, whose kinds they register
    tasks: Annotated[dict[str, TaskConfig], Field(min_length=1)]
    data: DataConfig
    model: ModelConfig
    tokenizer: TokenizerConfig
    input: InputConfig
    cache_dir: str

    def problems(self) -> list[Problem]:
        return task_problems(self.tasks, self.data) + text_problems(self.model, self.tokenizer, self.input)


class TrainConfig(PrepareConfig):
    """`python -m bert_mtl.train`."""

    seed: Seed
    mixing: MixingConfig
    weighting: WeightingConfig
    optimizer: OptimizerConfig
    strategy: StrategyConfig
    tracking: TrackingConfig
    run: RunConfig
    train: TrainSettings
    distill: DistillConfig

    def problems(self) -> list[Problem]:
        return super().problems() + training_problems(self)


class VocabConfig(Schema):
    """`python -m data_prep.vocab`."""

    plugins: list[Plugin]  # before the tasks, whose kinds they register
    tasks: Annotated[dict[str, TaskConfig], Field(min_length=1)]
    data: DataConfig
    kind: Literal["sentencepiece", "wordpiece"]
    size: PositiveInt
    lowercase: bool
    output: Filled
    cache_dir: str

    def problems(self) -> list[Problem]:
        return task_problems(self.tasks, self.data)

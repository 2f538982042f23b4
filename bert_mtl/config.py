"""The typed schema of the Hydra tree in `conf/`: what every entry point is handed.

Defaults and explanations live in the YAML files; types, bounds and impossible combinations live here.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from pydantic import AfterValidator, Field, PlainValidator, PositiveFloat, PositiveInt, SerializeAsAny, model_validator

from bert_mtl import mixing
from bert_mtl.kinds import KINDS, HeadSettings, head_settings
from conf.entry import Problem, Schema
from conf.explain import Variants

PARTS = ("train", "dev", "test")
RESERVED = ("text", "text_b", "tokens")  # fields of a row that are no labels
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


Trainable = Annotated[str, AfterValidator(_trainable)]
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
    trainable: Trainable
    adapters: Literal["none", "bottleneck", "layer_norm"]
    adapter_dim: PositiveInt
    task_embedding: bool
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
    kind: Literal["auto", "one_device", "mirrored"]
    devices: Annotated[list[str], Field(min_length=1)] | None
    xla: bool | Literal["auto"]


class TrackingConfig(Schema):
    kind: Literal["none", "wandb"]
    project: str
    mode: Literal["online", "offline"]


class RunConfig(Schema):
    dir: Filled
    resume: Filled | None


class TrainSettings(Schema):
    epochs: PositiveInt
    batch_size: PositiveInt
    eval_batch_size: PositiveInt
    select: Literal["dev", "last"]
    patience: PositiveInt | None
    save_every: PositiveInt
    test: bool


class PrepareConfig(Schema):
    """`python -m data_prep.build`: everything that decides what the records hold."""

    tasks: Annotated[dict[str, TaskConfig], Field(min_length=1)]
    data: DataConfig
    model: ModelConfig
    tokenizer: TokenizerConfig
    input: InputConfig
    seed: Seed
    cache_dir: str

    def problems(self) -> list[Problem]:
        return task_problems(self.tasks, self.data) + _text_problems(self.model, self.tokenizer, self.input)


class TrainConfig(PrepareConfig):
    """`python -m bert_mtl.train`."""

    mixing: MixingConfig
    weighting: WeightingConfig
    optimizer: OptimizerConfig
    strategy: StrategyConfig
    tracking: TrackingConfig
    run: RunConfig
    train: TrainSettings

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.run.resume is not None and not (Path(self.run.resume) / "config.yaml").exists():
            found.append(Problem("run.resume", "be a folder that bert_mtl.train wrote", self.run.resume))
        found += mixing.problems(self.mixing, self.tasks)
        if self.strategy.kind == "mirrored" and self.strategy.xla is True:
            found.append(Problem("strategy.xla", "not be true with strategy=mirrored", True, ("auto", "false")))
        if self.strategy.kind == "mirrored" and self.optimizer.accumulate > 1:
            found.append(Problem("optimizer.accumulate", "be 1 with strategy=mirrored", self.optimizer.accumulate))
        if self.strategy.kind == "one_device" and self.strategy.devices and len(self.strategy.devices) > 1:
            found.append(Problem("strategy.devices", "name one device with strategy=one_device", self.strategy.devices))
        if self.train.patience and self.train.select == "last":
            found.append(Problem("train.patience", "be null with train.select=last", self.train.patience))
        return found


class EvaluateConfig(Schema):
    """`python -m bert_mtl.evaluate`."""

    run: Filled
    data: DataConfig | None = None
    part: Part
    batch_size: PositiveInt
    errors: Annotated[int, Field(ge=0)]
    baseline: bool
    output: Filled | None

    def problems(self) -> list[Problem]:
        if self.baseline and self.part == "train":
            return [Problem("baseline", "be false with part=train, which the baseline learns by heart", True)]
        return []


class PredictConfig(Schema):
    """`python -m bert_mtl.predict`."""

    verbatim = ("text",)

    run: Filled
    text: str | None
    input: Filled | None
    output: Filled | None
    batch_size: PositiveInt

    def problems(self) -> list[Problem]:
        found = []
        if (self.text is None) == (self.input is None):
            found.append(Problem("text", "be given, or input, and not both", self.text))
        if self.input is not None and self.output is None:
            found.append(Problem("output", "be given with input", None))
        return found + _overwriting(self.input, self.output)


class EmbedConfig(Schema):
    """`python -m bert_mtl.embed`."""

    run: Filled
    input: Filled
    output: Filled
    layers: Annotated[list[int], Field(min_length=1)]
    pooling: Literal["cls", "mean", "max", "mean_max"]
    batch_size: PositiveInt

    def problems(self) -> list[Problem]:
        found = _overwriting(self.input, self.output)
        if not self.output.endswith((".npy", ".parquet")):
            found.append(Problem("output", "end in .npy or .parquet", self.output))
        return found


class ExportConfig(Schema):
    """`python -m bert_mtl.export`."""

    run: Filled
    bundle: Filled
    name: Filled | None


class VocabConfig(Schema):
    """`python -m data_prep.vocab`."""

    tasks: Annotated[dict[str, TaskConfig], Field(min_length=1)]
    data: DataConfig
    kind: Literal["sentencepiece", "wordpiece"]
    size: PositiveInt
    lowercase: bool
    output: Filled
    cache_dir: str

    def problems(self) -> list[Problem]:
        return task_problems(self.tasks, self.data)


def full_name(task: str, head: str) -> str:
    """What a head is called outside its task's YAML: the task's name where both are equal, else `<task>_<head>`."""
    return head if head == task else f"{task}_{head}"


def _overwriting(source: str | None, target: str | None) -> list[Problem]:
    if source is not None and target is not None and Path(source).absolute() == Path(target).absolute():
        return [Problem("output", "be another file than input", target)]
    return []


def task_problems(tasks: dict[str, TaskConfig], data: DataConfig) -> list[Problem]:
    """What is impossible about tasks and the data chosen for them."""
    found = [problem for name, task in tasks.items() for problem in _task_problems(name, task, data)]
    names = {full_name(task, head): config for task, settings in tasks.items() for head, config in settings.heads.items()}
    for task, settings in tasks.items():
        for head, config in settings.heads.items():
            if config.share_head is not None:
                found += _sharing_problems(f"tasks.{task}.heads.{head}.share_head", full_name(task, head), names)
    if data.path is not None and data.source == "sample":
        found.append(Problem("data.path", "be null with data=sample (use data=full)", data.path))
    if data.workers == 0 or data.workers < -1:
        found.append(Problem("data.workers", "be -1 or at least 1", data.workers))
    if data.dev_fraction + data.test_fraction >= 1:
        total = data.dev_fraction + data.test_fraction
        found.append(Problem("data.dev_fraction", "leave a share for train beside data.test_fraction", total))
    return found


def _task_problems(name: str, task: TaskConfig, data: DataConfig) -> list[Problem]:
    key, found = f"tasks.{name}", []
    if data.source not in task.sources:
        found.append(Problem("data", f"be a source that task {name} has", data.source, tuple(task.sources)))
    for head, config in task.heads.items():
        found += [Problem(f"{key}.heads.{head}.{part}", rule, value) for part, rule, value in config.faults()]
        if head in RESERVED or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", head):
            rule = f"have names of letters, digits, '_', '.' and '-', and not {', '.join(RESERVED)}"
            found.append(Problem(f"{key}.heads", rule, head))
    kinds = {head: KINDS[config.kind] for head, config in task.heads.items()}
    if len(kinds) > 1:
        for head, kind in kinds.items():
            if kind.level == "mask":  # it would hide words from the other heads
                found.append(Problem(f"{key}.heads.{head}", "be the only head of its task, as it hides words", kind.kind))
            if kind.separate:
                found.append(Problem(f"{key}.heads.{head}", "be the only head of its task, of texts apart", kind.kind))
    fields = (*RESERVED, *task.heads)
    for source_name, source in task.sources.items():
        rule, key_of_source = "name known fields", f"{key}.sources.{source_name}.columns"
        found += [Problem(key_of_source, rule, field, fields) for field in source.columns if field not in fields]
    return found


def _sharing_problems(key: str, name: str, heads: dict[str, HeadSettings]) -> list[Problem]:
    """What is impossible about the head `name` taking its layer from the head it names."""
    own, other = heads[name], heads[name].share_head
    if other not in heads or other == name:
        return [Problem(key, "name another head of this run", other, [head for head in heads if head != name])]
    if heads[other].share_head is not None:
        return [Problem(key, "name a head that has a layer of its own", other)]
    if own.kind != heads[other].kind or getattr(own, "labels", None) != getattr(heads[other], "labels", None):
        return [Problem(key, f"name a {own.kind} head with the same labels", other)]
    return []


def _text_problems(model: ModelConfig, tokenizer: TokenizerConfig, input: InputConfig) -> list[Problem]:
    found = []
    if (model.weights is None) == (model.size is None):
        found.append(Problem("model.size", "be given without model.weights, and only then", model.size))
    if model.size is not None and model.size.hidden_dim % model.size.num_heads:
        rule = f"be a multiple of model.size.num_heads ({model.size.num_heads})"
        found.append(Problem("model.size.hidden_dim", rule, model.size.hidden_dim))
    if model.size is not None and tokenizer.max_length > model.size.max_positions:
        rule = f"be at most model.size.max_positions ({model.size.max_positions})"
        found.append(Problem("tokenizer.max_length", rule, tokenizer.max_length))
    if input.row_length is not None and input.row_length < tokenizer.max_length:
        rule = f"be null or at least tokenizer.max_length ({tokenizer.max_length})"
        found.append(Problem("input.row_length", rule, input.row_length))
    if input.pad_to > tokenizer.max_length:
        rule = f"be at most tokenizer.max_length ({tokenizer.max_length})"
        found.append(Problem("input.pad_to", rule, input.pad_to))
    return found

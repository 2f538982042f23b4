"""The parts of a run's tasks: as pipelines to be answered, and as the texts that stand behind them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_mtl.config import DataConfig, TrainConfig
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.part_reader import PartReader
from bert_mtl.records import load_manifest
from bert_mtl.runs import Run
from bert_mtl.tasks import Task

Texts = Sequence[tuple[str, ...]]  # of each example its text, or both of a pair


class Part(NamedTuple):
    """Texts of a part in stored order, and the stored labels `(examples, *shape)` of text-level heads by full name."""

    texts: Texts
    labels: dict[str, np.ndarray]


def part_reader(run: Run, task: Task, folder: Path, part: str) -> PartReader:
    """Reads a part of a task's records as the run does."""
    return PartReader(folder, part, task, run.tokenizer, run.config.input, run.config.data)


def part_pipelines(run: Run, folders: dict[str, Path], part: str, **changes: Any) -> dict[str, Pipeline]:
    """One part of each task whose records are in `folders`, every task by itself, for evaluation; `changes` are of
    sections of the configuration."""
    config = run.config.model_copy(update=changes)
    return {
        name: Pipeline(
            readers=(reader := part_reader(run, run.tasks[name], folder, part),),
            input=config.input,
            batch_size=config.train.eval_batch_size,
            counts=(reader.examples,),
        )
        for name, folder in folders.items()
    }


def on_texts(config: TrainConfig, data: DataConfig) -> TrainConfig:
    """The run's configuration, had it read `data` from text shards."""
    return config.model_copy(update={"data": data, "input": config.input.model_copy(update={"kind": "textline"})})


def read_part(folder: Path, part: str, task: Task) -> Part:
    """A part of a records folder of text shards."""
    stored = [spec for spec in task.labels if spec.stored]
    texts: list[tuple[str, ...]] = []
    labels: dict[str, list] = {spec.name: [] for spec in stored if spec.level == "text"}
    for shard in load_manifest(folder).parts[part].shards:
        with open(folder / shard.file, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                fields = line.rstrip("\n").split("\t")
                texts.append(tuple(fields[len(stored) :]))
                for spec, field in zip(stored, fields, strict=False):
                    if spec.name in labels:
                        labels[spec.name].append(np.array(field.split(" "), spec.dtype).reshape(spec.shape))
    return Part(texts, {name: np.array(values) for name, values in labels.items()})

"""What a bundle's manifest.json says of a run; `serving.bundle` and `serving.heads` document its fields."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from bert_mtl.config import TrainConfig
from bert_mtl.runs import Run
from bert_mtl.tasks import Task

FORMAT = 4
PACKAGES = ("tensorflow", "keras", "tensorflow-text", "bert_mtl")


def manifest(run: Run, ids: Any, name: str, engines: Mapping[str, dict]) -> dict[str, Any]:
    """All of manifest.json that follows from a run and its graph `ids` (`Served.ids`), without the hashes of the files
    and without what comparing the formats finds."""
    results, tokenizer = json.loads((run.folder / "metrics.json").read_text()), run.tokenizer
    return {
        "format": FORMAT,
        "name": name,
        "version": run.folder.name,
        "run": run.folder.name,
        "data": run.config.data.source,
        "tasks": tasks(run),
        "training": training(run.config),
        "heads": heads(run, ids),
        "tokenizer": {
            "kind": tokenizer.kind,
            "lowercase": run.config.tokenizer.lowercase,
            "max_length": tokenizer.max_length,
            "truncation": tokenizer.truncation,
            "pad_id": tokenizer.pad_id,
            "cls_id": tokenizer.cls_id,
            "sep_id": tokenizer.sep_id,
            "mask_id": tokenizer.mask_id,
        },
        "encoder": {"dim": run.facts.encoder.hidden_dim, "layers": run.facts.encoder.num_layers},
        "engines": engines,
        "gates": {},
        "metrics": {part: results[part] for part in ("dev", "test")},
        "versions": {package: version(package) for package in PACKAGES},
    }


def tasks(run: Run) -> dict[str, dict]:
    """What each task was learned from."""
    return {
        name: {
            "license": task.license,
            "link": task.link,
            "fingerprint": run.facts.data[name],
            "limit": task.limit or run.config.data.limit,
        }
        for name, task in run.config.tasks.items()
    }


def training(config: TrainConfig) -> dict[str, Any]:
    """How the run was trained."""
    return {
        "weights": origin(config.model.weights),
        "epochs": config.train.epochs,
        "batch_size": config.train.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "seed": config.seed,
        "mixing": config.mixing.kind,
        "weighting": config.weighting.kind,
    }


def origin(weights: str | None) -> str | None:
    """A URI of pretrained weights; of a local one the last name alone, as folders of this machine say nothing
    elsewhere."""
    return PurePath(weights).name if weights and weights.startswith("file://") else weights


def heads(run: Run, ids: Any) -> dict[str, dict]:
    """What manifest.json says of every head: `Head.export`, its task and level, what its rows hold, and the shape of
    its output in the graph `ids` without the rows (and their tokens)."""
    outputs = ids.get_concrete_function().structured_outputs
    return {
        head.name: head.export()
        | {
            "task": task.name,
            "level": head.level,
            "reads": reads(task, task.name in run.facts.pairs),
            "shape": outputs[head.name].shape[1 if head.level == "text" else 2 :].as_list(),
        }
        for task in run.tasks.values()
        for head in task.heads.values()
    }


def reads(task: Task, pair: bool) -> str:
    """What a row of the task holds: both texts of a `pair`, one of the two (`apart`), a text in which [MASK] is the
    mask (`masks`), or a text, read whole (`text`) or word by word (`words`)."""
    if task.separate:
        return "apart"
    if pair:
        return "pair"
    if any(head.level == "mask" for head in task.heads.values()):
        return "masks"
    return "words" if task.words else "text"

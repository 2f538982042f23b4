"""What a run learns from, for its report: each task's parts, labels and lengths, and how the mixture fills its rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_mtl.atomic import atomic_write
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.meter import load_of
from bert_mtl.parts import part_reader
from bert_mtl.runs import Run

BINS = 24  # of a histogram of lengths


def data_facts(run: Run, folders: Mapping[str, Path], train: Pipeline) -> dict[str, Any]:
    """`tasks` and the `packing` of the first epoch of the mixture `train`."""
    tasks = {name: _task_facts(run, name, folder) for name, folder in folders.items()}
    load, packing = load_of(train, train.first_epoch), train.packing
    return {
        "tasks": tasks,
        "packing": {
            "kind": run.config.input.packing,
            "rows": packing.rows,
            "row_length": getattr(packing, "length", None),
            "fill": load.fill,
            "steps": load.steps,
            "examples_per_step": sum(train.counts) / load.steps,
            "tokens_per_step": load.work.tokens / load.steps,
        },
    }


def _task_facts(run: Run, name: str, folder: Path) -> dict[str, Any]:
    task, config = run.tasks[name], run.config.tasks[name]
    readers = {part: part_reader(run, task, folder, part) for part in ("train", "dev", "test")}
    readers = {part: reader for part, reader in readers.items() if reader.examples}
    edges = np.linspace(0, run.config.tokenizer.max_length, BINS + 1)
    parts = next(iter(readers.values())).manifest.parts
    return {
        "source": run.config.data.source,
        "license": config.license,
        "link": config.link,
        "fingerprint": run.facts.data[name],
        "parts": {
            part: {
                "examples": parts[part].examples,
                "truncated": parts[part].truncated,
                "labels": parts[part].statistics,
            }
            for part in readers
        },
        "lengths": {"edges": edges.tolist(), "limit": run.config.tokenizer.max_length}
        | {part: np.histogram(reader.lengths, edges)[0].tolist() for part, reader in readers.items()},
    }


def save_data_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes data.json to a run's folder. Raises DataError where that cannot be done."""
    with atomic_write(folder / "data.json") as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode())

"""A part's rows, checked, as JSON lines on disk: read by offset, so that no step holds the corpus in memory."""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_mtl.config import TaskConfig
from bert_mtl.records import atomic_write
from bert_mtl.tasks import DataError, Example, make_example
from data_prep.sources import Row


@dataclass(frozen=True)
class Spool:
    """`offsets` `(examples,)` of the lines in `path`, and the label ids `(examples,)` of the task's first head."""

    path: Path
    offsets: np.ndarray
    labels: np.ndarray


def write_spool(path: Path, rows: Iterable[Row], task: TaskConfig) -> Spool:
    """Checks every row and writes it; an index file beside marks the spool complete, so an interrupted build keeps it.

    Raises:
        DataError: a row is not as it must be, there is none, or the disk is full.
    """
    index = path.with_suffix(".npz")
    if not index.exists():
        offsets, labels = _write(path, rows, task)
        if not offsets:
            raise DataError(f"the {path.stem} part must hold at least one example; got none.")
        with atomic_write(index) as file:
            np.savez(file, offsets=np.asarray(offsets), labels=np.asarray(labels))
    with np.load(index) as saved:
        return Spool(path, saved["offsets"], saved["labels"])


def _write(path: Path, rows: Iterable[Row], task: TaskConfig) -> tuple[array, array]:
    """Writes the lines; returns their offsets and the label ids of the first head."""
    head, offsets, labels, position = next(iter(task.heads)), array("Q"), array("H"), 0
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with atomic_write(path) as file:
        for row in rows:
            example = make_example(task, row.values, row.origin)
            offsets.append(position)
            labels.append(example.labels[head])
            position += file.write(encode([example.text, example.text_b, example.labels]).encode() + b"\n")
    return offsets, labels


def read_spool(path: Path, offsets: np.ndarray) -> Iterator[Example]:
    """The examples whose lines begin at `offsets`, in that order."""
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(int(offset))
            yield Example(*json.loads(file.readline()))

"""A part's rows, checked, as JSON lines on disk: read by offset, so that no step holds the corpus in memory."""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_mtl.atomic import atomic_write
from bert_mtl.tasks import DataError, Example, Task, make_example
from data_prep.sources import Row


@dataclass(frozen=True)
class Spool:
    """`offsets` `(examples,)` of the lines in `path`, the stratum `(examples,)` of each example for its task's first
    head (`Head.stratum`), and whether examples are pairs."""

    path: Path
    offsets: np.ndarray
    strata: np.ndarray
    pair: bool


def write_spool(path: Path, rows: Iterable[Row], task: Task) -> Spool:
    """Checks every row and writes it; an index file beside marks the spool complete, so an interrupted build keeps it.

    Raises:
        DataError: a row is not as it must be, there is none, or the disk is full.
    """
    index = path.with_suffix(".npz")
    if not index.exists():
        offsets, strata, pair = _write(path, rows, task)
        if not offsets:
            raise DataError(f"the {path.stem} part of task {task.name} must hold at least one example; got none.")
        with atomic_write(index) as file:
            np.savez(file, offsets=np.asarray(offsets), strata=np.asarray(strata), pair=pair)
    with np.load(index) as saved:
        return Spool(path, saved["offsets"], saved["strata"], bool(saved["pair"]))


def _write(path: Path, rows: Iterable[Row], task: Task) -> tuple[array, array, bool]:
    """Writes the lines; returns their offsets, strata, and whether they are pairs."""
    first, offsets, strata, position = next(iter(task.heads.values())), array("Q"), array("i"), 0
    encode, pair = json.JSONEncoder(ensure_ascii=False).encode, None
    with atomic_write(path) as file:
        for row in rows:
            example = make_example(task, row.values, row.origin)
            pair = (example.text_b is not None) if pair is None else pair
            if pair != (example.text_b is not None):
                raise DataError(f"{row.origin}: either all rows must have text_b or none; got both.")
            offsets.append(position)
            strata.append(first.stratum(example.labels.get(first.name, [])))
            position += file.write(encode([example.text, example.text_b, example.labels]).encode() + b"\n")
    return offsets, strata, bool(pair)


def read_spool(path: Path, offsets: np.ndarray) -> Iterator[Example]:
    """The examples whose lines begin at `offsets`, in that order."""
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(int(offset))
            yield Example(*json.loads(file.readline()))

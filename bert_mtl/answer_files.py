"""A part's answers as a file beside the run, for whoever reads or compares them later (`bert_mtl.answer_table`)."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_mtl.answer_table import MARK, answers_file
from bert_mtl.answers import Answered
from bert_mtl.atomic import atomic_write
from bert_mtl.kinds import Head
from bert_mtl.outcomes import Outcomes, outcomes
from bert_mtl.scores import score
from bert_mtl.tasks import Task

SAME = 1e-6  # how far a head's metric in float32 may be from what its statistics give

log = logging.getLogger(__name__)


def write_answers(
    folder: Path,
    part: str,
    task: Task,
    texts: Sequence[tuple[str, ...]],
    lengths: np.ndarray,
    answered: Mapping[str, Answered],
) -> Path:
    """Writes what the heads of a task, as they are tuned now, have answered to a part; returns the file.

    Args:
        folder: of the run.
        texts: of all examples in stored order: the text, or both of a pair.
        lengths: `(examples,)` their tokens.
        answered: by full name of the head; what is none of the task's heads (exits) is left out.

    Raises:
        DataError: the file cannot be written.
    """
    columns: dict[str, Any] = dict(zip(("text", "text_b"), zip(*texts, strict=True), strict=False))
    columns["tokens"] = pa.array(lengths, pa.int32())
    facts = {}
    for head in task.heads.values():
        if head.name in answered:
            found = _outcomes(head, answered[head.name])
            facts[head.name] = _facts(head, answered[head.name]) | {"score": found and found.score}
            if found is not None:
                columns |= _columns(head.name, found, answered[head.name].index, len(texts))
    hashed = hashlib.sha256("\n".join("\t".join(each) for each in texts).encode()).hexdigest()
    about = {"part": part, "task": task.name, "texts": hashed, "heads": facts}
    table = pa.table(columns).replace_schema_metadata({MARK: json.dumps(about)})
    path = answers_file(folder, part, task.name)
    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")
    return path


def _outcomes(head: Head, answered: Answered) -> Outcomes | None:
    """None for masked places, which are no examples; without statistics where they do not give the head's metric, as
    in a kind that inherits from another and measures in a way of its own."""
    if head.level == "mask":
        return None
    if not len(answered.index):
        return Outcomes([], [])
    found = outcomes(head, answered)
    if found.score is None or found.statistics is None:
        return found
    statistics = np.asarray(found.statistics, np.float64)
    known = ~np.isnan(statistics).any(axis=1)
    if abs(score(found.score, statistics[known]) - _facts(head, answered)["value"]) <= SAME:
        return found
    log.warning(
        "head %s cannot be compared with other runs: its %s is not the %s of what outcomes gives for kind %s",
        *(head.name, head.metric, found.score, head.kind),
    )
    return Outcomes(found.labels, found.answers, found.right)


def _facts(head: Head, answered: Answered) -> dict[str, Any]:
    values = head.metrics(answered.answers, answered.labels) if len(answered.index) else {}
    return {"kind": head.kind, "metric": head.metric, "value": values.get(head.metric)}


def _columns(name: str, found: Outcomes, index: np.ndarray, examples: int) -> dict[str, pa.Array]:
    """The head's columns: what was `found` at the places `index`, null elsewhere."""
    places = np.full(examples, -1)
    places[index] = np.arange(len(index))
    rows = pa.array(np.maximum(places, 0), mask=places < 0)

    def placed(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(rows) if len(index) else pa.nulls(examples, kind)

    columns = {
        f"{name}.label": placed(found.labels, pa.string()),
        f"{name}.answer": placed(found.answers, pa.string()),
        f"{name}.right": pa.nulls(examples, pa.bool_()) if found.right is None else placed(found.right, pa.bool_()),
    }
    if found.statistics is not None:
        statistics = np.ascontiguousarray(found.statistics, np.float64)
        size = statistics.shape[1]
        lists = pa.FixedSizeListArray.from_arrays(
            pa.array(statistics.ravel()), size, mask=pa.array(np.isnan(statistics).any(axis=1))
        )
        columns[f"{name}.statistics"] = lists.take(rows)
    return columns

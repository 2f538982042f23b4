"""What a run has answered to a part of a task, read from `answers/<part>-<task>.parquet` without any model.

A row is an example in stored order: `text`, `text_b` of pairs, `tokens`, and of every head `<head>.label`,
`<head>.answer`, `<head>.right` and `<head>.statistics`, null where the head has no label.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MARK = b"bert_mtl.answers"  # key of the facts in the file's metadata


class HeadFacts(NamedTuple):
    """A head as the file knows it: its `value` of its `metric` (None without a labelled example), and which score of
    `bert_mtl.scores` its statistics give the same by (None where there are none)."""

    kind: str
    metric: str
    value: float | None
    score: str | None


class HeadAnswers(NamedTuple):
    """Columns of one head, an entry an example: `label` and `answer` texts, `right` bools, all three with nulls;
    `statistics` `(examples, k)`, rows of NaN where there are none, k of 0 for a head without a score."""

    label: pa.ChunkedArray
    answer: pa.ChunkedArray
    right: pa.ChunkedArray
    statistics: np.ndarray


@dataclass(frozen=True)
class AnswerTable:
    """One file. Columns are read when they are asked for."""

    file: Path

    @cached_property
    def _facts(self) -> dict:
        return json.loads(pq.read_schema(self.file).metadata[MARK])

    @property
    def texts_hash(self) -> str:
        """SHA-256 of the texts in their order."""
        return self._facts["texts"]

    @cached_property
    def heads(self) -> dict[str, HeadFacts]:
        """By full name."""
        return {name: HeadFacts(**facts) for name, facts in self._facts["heads"].items()}

    def texts(self) -> list[tuple[str, ...]]:
        """The text of every example, or both of a pair."""
        names = [name for name in ("text", "text_b") if name in pq.read_schema(self.file).names]
        table = pq.read_table(self.file, columns=names)
        return list(zip(*(table[name].to_pylist() for name in names), strict=True))

    def head(self, name: str) -> HeadAnswers:
        """The columns of a head that has some: every one but those that guess masked words."""
        scored = self.heads[name].score is not None
        kinds = ("label", "answer", "right", *(["statistics"] if scored else []))
        table = pq.read_table(self.file, columns=[f"{name}.{kind}" for kind in kinds])
        label, answer, right, *rest = table.columns
        return HeadAnswers(label, answer, right, _rows(rest[0]) if scored else np.zeros((len(label), 0)))


def answers_file(folder: Path, part: str, task: str) -> Path:
    """Where the answers of the run in `folder` stand."""
    return folder / "answers" / f"{part}-{task}.parquet"


def read_answers(folder: Path, part: str, task: str) -> AnswerTable | None:
    """The answers of the run in `folder`; None where there are none."""
    file = answers_file(folder, part, task)
    return AnswerTable(file) if file.exists() else None


def _rows(column: pa.ChunkedArray) -> np.ndarray:
    lists = column.combine_chunks()
    rows = np.full((len(lists), lists.type.list_size), np.nan)
    rows[lists.is_valid().to_numpy(zero_copy_only=False)] = lists.flatten().to_numpy().reshape(-1, rows.shape[1])
    return rows

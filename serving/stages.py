"""Rows on their way through an engine's stages: in batches of one stage each, out where their heads are sure.

With a single stage all rows are answered behind it; with several, easy rows leave early and the others go on together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from serving.bundle import StageFiles
from serving.engines import Engine, EngineError
from serving.heads import Head
from serving.rows import Row, pad


@dataclass
class Underway:
    """A row, its states `(length, dim)` behind the stage that it has passed, what heads have answered so far, and at
    which stage."""

    row: Row
    states: np.ndarray | None = None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    stages: dict[str, StageFiles] = field(default_factory=dict)


class Batch(NamedTuple):
    """Rows that one stage takes at once."""

    stage: int
    rows: list[Underway]


class Journey:
    """The rows of a request, ordered into batches: the deepest stage for which more than a batch waits comes first, so
    that few states are kept; what is left over goes on once no rows come from before.

    Args:
        heads: all of the bundle's, by name.
        asked: names of those that must answer a row before it may leave.
        tokens: of a batch, padding included; a longer row goes alone.
    """

    def __init__(
        self, engine: Engine, heads: Mapping[str, Head], asked: Sequence[str], rows: Sequence[Underway], tokens: int,
        pad_id: int,
    ) -> None:  # fmt: skip
        self.engine, self.heads, self.asked, self.tokens, self.pad_id = engine, heads, asked, tokens, pad_id
        self.waiting: list[list[Underway]] = [[] for _ in engine.stages]
        self.waiting[0] = sorted(rows, key=lambda each: len(each.row.ids))

    def next(self) -> Batch | None:
        """The batch that comes next, the shortest rows of its stage; None when all rows are answered."""
        counts = {number: self._count(rows) for number, rows in enumerate(self.waiting) if rows}
        if not counts:
            return None
        full = [number for number, count in counts.items() if count < len(self.waiting[number])]
        stage = full[-1] if full else min(counts)
        rows = self.waiting[stage]
        self.waiting[stage] = rows[counts[stage] :]
        return Batch(stage, rows[: counts[stage]])

    def _count(self, rows: Sequence[Underway]) -> int:
        """How many of the first rows fill a batch."""
        fitting = (number for number, each in enumerate(rows, start=1) if number * len(each.row.ids) > self.tokens)
        return max(next(fitting, len(rows) + 1) - 1, 1)

    def run(self, batch: Batch) -> None:
        """Takes a batch through its stage. Raises `EngineError` where the model does not answer as its manifest says.

        What the heads asked for are sure of is kept in `Underway.outputs`; rows without all of them wait for the next.
        """
        padded = pad([each.row for each in batch.rows], self.pad_id)
        arrays = padded._asdict()
        if batch.stage:
            arrays["states"] = _side_by_side(
                [each.states for each in batch.rows if each.states is not None], padded.token_ids.shape[1]
            )
        outputs = self.engine.run(batch.stage, arrays)
        check_outputs(outputs, self.heads, *padded.token_ids.shape)
        stage, last = self.engine.stages[batch.stage], batch.stage == len(self.engine.stages) - 1
        for name in self.asked:
            sure = (
                np.full(len(batch.rows), True) if last else outputs[name].max(axis=1) >= stage.leave.get(name, np.inf)
            )
            for each, output, taken in zip(batch.rows, outputs[name], sure, strict=True):
                if taken and name not in each.outputs:
                    each.outputs[name], each.stages[name] = output, stage
        going = [number for number, each in enumerate(batch.rows) if len(each.outputs) < len(self.asked)]
        for number in going:
            each = batch.rows[number]
            each.states = outputs["next_states"][number, : len(each.row.ids)].copy()  # not a view of the whole batch
            self.waiting[batch.stage + 1].append(each)
        if going:
            self.waiting[batch.stage + 1].sort(key=lambda each: len(each.row.ids))


def _side_by_side(states: Sequence[np.ndarray], length: int) -> np.ndarray:
    """States `(length of a row, dim)` as `(rows, length, dim)`, filled up with zeros."""
    padded = np.zeros((len(states), length, states[0].shape[1]), np.float32)
    for number, each in enumerate(states):
        padded[number, : len(each)] = each
    return padded


def check_outputs(outputs: Mapping[str, np.ndarray], heads: Mapping[str, Head], rows: int, length: int) -> None:
    """Raises `EngineError` unless every head has finite numbers of its shape for rows of that length."""
    for name, head in heads.items():
        if name not in outputs:
            raise EngineError(f"the model must have an output for head {name}; it has {', '.join(outputs) or 'none'}")
        if outputs[name].shape != (shape := head.output_shape(rows, length)):
            raise EngineError(f"head {name} must give numbers of shape {shape}; got shape {outputs[name].shape}")
        if not np.isfinite(outputs[name]).all():
            raise EngineError(f"head {name} must give finite numbers; got NaN or infinity")

"""What the batcher asks of a worker and what it says back: the words on both ends of their socket."""

import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serving.bundle import Bundle, Precision, StageFiles, layer_name
from serving.engines import EngineName
from serving.pooling import Pooling, pool

SIZE = struct.Struct("<Q")
"""Of a message in bytes, before it."""


@dataclass(frozen=True)
class Heads:
    """Wanted of a row: what these heads answer."""

    names: frozenset[str]


@dataclass(frozen=True)
class Vectors:
    """Wanted of a row: a vector of these layers (0: the embeddings), side by side (`serving.vectors.plan`).

    Attributes:
        asked: names of the outputs to ask of each stage (`Engine.run`), `next_states` among them but for the last; no
            more stages than are needed.
    """

    layers: tuple[int, ...]
    pooling: Pooling
    asked: tuple[tuple[str, ...], ...]

    def vector(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vector of a row, from all that was asked for, its own tokens alone: layers `(length, dim)`, `pooled`
        `(dim,)`."""
        return pool([outputs[layer_name(number)] for number in self.layers], outputs.get("pooled"), self.pooling)


Want = Heads | Vectors


class Item(NamedTuple):
    """A row of a step; `key` is that of the states which the worker keeps for it between stages.

    Attributes:
        ids: `(length,)` int32.
        second: the place at which a second text begins; None where there is none.
        want: what has not been answered yet.
    """

    key: int
    ids: np.ndarray
    second: int | None
    want: Want


class Step(NamedTuple):
    """Rows that a stage takes at once, all of them wanted heads or all the same vectors; and the keys of rows that
    nobody waits for any more."""

    stage: int
    items: Sequence[Item]
    forgotten: Sequence[int] = ()


class Passed(NamedTuple):
    """What a stage found for a row: a head's answer by name, or the vectors as `VECTOR`; whether it goes on to the
    next stage."""

    outputs: dict[str, np.ndarray]
    goes_on: bool


VECTOR = "vector"


class Numbered(NamedTuple):
    """A step, or what came of it, with the number that both have."""

    number: int
    content: Any


@dataclass(frozen=True)
class WorkerSettings:
    """The first message to a worker: a checked bundle, the engine to open it by, how many batches that is to run side
    by side, and the threads of each."""

    bundle: Bundle
    engine: EngineName
    lanes: int
    threads: int


class Failed(NamedTuple):
    """Why the engine did not open, or a step failed."""

    message: str


class Opened(NamedTuple):
    """The worker's first message: its engine answers.

    Attributes:
        stages: of the engine that heads answer by.
        vectors: the engine that vectors are made by, and its stages; it is opened once it is asked. None where none is.
    """

    engine: str
    precision: Precision
    stages: Sequence[StageFiles]
    vectors: tuple[str, Sequence[StageFiles]] | None


def packed(message: object) -> bytes:
    """The message as it goes through the socket."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return SIZE.pack(len(content)) + content

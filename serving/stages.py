"""Rows on their way through an engine's stages, in the process that has the engine.

With a single stage all rows are answered behind it; with several, a row leaves where all its heads are sure. What lies
between two stages (token states) stays here under the row's key.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from serving.engines import Engine
from serving.errors import EngineError
from serving.heads import Head
from serving.rows import pad
from serving.steps import VECTOR, Heads, Item, Passed, Step, Vectors

Arrays = Mapping[str, np.ndarray]


class Kept(NamedTuple):
    """A row's states `(length, dim)` behind the stage that it has passed, and what its vector is made of."""

    states: np.ndarray
    outputs: dict[str, np.ndarray]


class Runner:
    """Takes steps of the batcher through an engine; through that of `vectors` those that want some."""

    def __init__(self, engine: Engine, heads: Mapping[str, Head], pad_id: int) -> None:
        self.engine, self.heads, self.pad_id = engine, heads, pad_id
        self.vectors: Callable[[], Engine] = lambda: engine
        self.kept: dict[int, Kept] = {}

    def run(self, step: Step) -> list[Passed]:
        """What the stage finds for each row. A step that failed can be run again, as a whole or in parts.

        Raises `EngineError` where the model does not answer as its manifest says.
        """
        for key in step.forgotten:
            self.kept.pop(key, None)
        padded = pad(step.items, self.pad_id)
        arrays = padded._asdict()
        if step.stage:
            states = [self.kept[item.key].states for item in step.items]
            arrays["states"] = _side_by_side(states, padded.token_ids.shape[1])
        want = step.items[0].want
        if isinstance(want, Vectors):
            return self._vectors(step, want, arrays)
        outputs = self.engine.run(step.stage, arrays)
        check_outputs(outputs, self.heads, *padded.token_ids.shape)
        return [self._answered(step.stage, number, item, outputs) for number, item in enumerate(step.items)]

    def _answered(self, number: int, place: int, item: Item, outputs: Arrays) -> Passed:
        """What the heads are sure of behind stage `number`, for the row at `place`."""
        assert isinstance(item.want, Heads)
        stage, last = self.engine.stages[number], number == len(self.engine.stages) - 1
        sure = {
            name: outputs[name][place]
            for name in item.want.names
            if last or outputs[name][place].max() >= stage.leave.get(name, np.inf)
        }
        goes_on = len(sure) < len(item.want.names)
        if goes_on:
            # Not a view of the whole batch.
            self.kept[item.key] = Kept(outputs["next_states"][place, : len(item.ids)].copy(), {})
        else:
            self.kept.pop(item.key, None)
        return Passed(sure, goes_on)

    def _vectors(self, step: Step, want: Vectors, arrays: Arrays) -> list[Passed]:
        outputs = self.vectors().run(step.stage, arrays, want.asked[step.stage])
        if not all(np.isfinite(each).all() for each in outputs.values()):
            raise EngineError("the encoder must give finite numbers; got NaN or infinity")
        return [self._pooled(step.stage, place, item, want, outputs) for place, item in enumerate(step.items)]

    def _pooled(self, number: int, place: int, item: Item, want: Vectors, outputs: Arrays) -> Passed:
        own = {
            name: (each[place] if name == "pooled" else each[place, : len(item.ids)]).copy()
            for name, each in outputs.items()
        }
        before = self.kept[item.key].outputs if number else {}
        if number < len(want.asked) - 1:
            self.kept[item.key] = Kept(own.pop("next_states"), before | own)
            return Passed({}, True)
        self.kept.pop(item.key, None)
        return Passed({VECTOR: want.vector(before | own)}, False)


def _side_by_side(states: Sequence[np.ndarray], length: int) -> np.ndarray:
    """States `(length of a row, dim)` as `(rows, length, dim)`, filled up with zeros."""
    padded = np.zeros((len(states), length, states[0].shape[1]), np.float32)
    for number, each in enumerate(states):
        padded[number, : len(each)] = each
    return padded


def check_outputs(outputs: Arrays, heads: Mapping[str, Head], rows: int, length: int) -> None:
    """Raises `EngineError` unless every head has finite numbers of its shape for rows of that length."""
    for name, head in heads.items():
        if name not in outputs:
            raise EngineError(f"the model must have an output for head {name}; it has {', '.join(outputs) or 'none'}")
        if outputs[name].shape != (shape := head.output_shape(rows, length)):
            raise EngineError(f"head {name} must give numbers of shape {shape}; got shape {outputs[name].shape}")
        if not np.isfinite(outputs[name]).all():
            raise EngineError(f"head {name} must give finite numbers; got NaN or infinity")

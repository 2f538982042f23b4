"""Layers and a pooling in; out comes what each of a model's stages must be asked for, and vectors of what it gives."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from conf.errors import Problem
from serving.bundle import Manifest, layer_name
from serving.engines import Engine
from serving.pooling import Pooling, pool


class NoVectors(ValueError):
    """Vectors of this kind cannot be had; the message says why, and what to do."""


class Plan(NamedTuple):
    """What vectors of one kind are made of.

    Attributes:
        layers: their numbers, 0 being the embeddings.
        asked: names of the outputs to ask of each stage (`Engine.run`), `next_states` among them but for the last;
            no more stages than are needed.
    """

    layers: list[int]
    pooling: Pooling
    asked: list[list[str]]

    def vector(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vector of a text, from all that was asked for, its own tokens alone: layers `(length, dim)`, `pooled`
        `(dim,)`."""
        return pool([outputs[layer_name(number)] for number in self.layers], outputs.get("pooled"), self.pooling)


def plan(manifest: Manifest, engine: Engine, layers: Sequence[int], pooling: Pooling) -> Plan:
    """Layers are numbered as in `bert_mtl.embed`: 0 the embeddings, 1 the lowest, -1 the last; `cls_pooled` needs none.

    Raises `NoVectors` for a layer that the model does not have, and where the engine cannot give what is asked for.
    """
    if refused := _refusal(manifest, engine, pooling):
        raise NoVectors(refused)
    count = engine.stages[-1].depth + 1
    if not layers:
        raise NoVectors(str(Problem("layers", "name at least one", list(layers))))
    if strange := [number for number in layers if not -count <= number < count]:
        raise NoVectors(str(Problem("layers", f"be between {-count} and {count - 1}", strange[0])))
    numbers = [] if pooling == "cls_pooled" else [number % count for number in layers]
    needed = {*map(layer_name, numbers)} or {"pooled"}
    asked = [[name for name in stage.vectors if name in needed] for stage in engine.stages]
    last = max(number for number, names in enumerate(asked) if names)
    return Plan(numbers, pooling, [*([*names, "next_states"] for names in asked[:last]), asked[last]])


def _refusal(manifest: Manifest, engine: Engine, pooling: Pooling) -> str | None:
    """Why the engine gives no vectors of the kind."""
    if any(stage.layers for stage in engine.stages):
        if pooling == "cls_pooled" and not engine.stages[-1].pooled:
            return (
                "pooling must not be cls_pooled: the model has no trained pooler (it takes a run of model.pooling=cls)"
            )
        return None
    if manifest.encoder is None:
        return "the bundle is of before vectors could be made: export the run again"
    if others := [name for name, files in manifest.engines.items() if any(stage.layers for stage in files.stages)]:
        return str(Problem("engine", "give the states of layers, which vectors are made of", engine.name, others))
    if engine.name == "litert":
        return "LiteRT cannot give the states of layers, which vectors are made of: export with formats=[openvino]"
    return (
        "vectors cannot be made: tasks have weights of their own in the encoder (model.adapters, "
        "model.task_embedding), so that a text's states differ from task to task"
    )

"""Layers and a pooling in; out comes what each of a model's stages must be asked for."""

from collections.abc import Sequence

from conf.errors import Problem
from serving.bundle import Manifest, layer_name
from serving.errors import Refused
from serving.pooling import Pooling
from serving.steps import Opened, Vectors


def plan(manifest: Manifest, opened: Opened, layers: Sequence[int], pooling: Pooling) -> Vectors:
    """Layers are numbered as in `bert_mtl.embed`: 0 the embeddings, 1 the lowest, -1 the last; `cls_pooled` needs none.

    Raises `Refused` for a layer that the model does not have, and where the engine cannot give what is asked for.
    """
    if opened.vectors is None:
        raise Refused(_refusal(manifest, opened.engine))
    stages = opened.vectors[1]
    if pooling == "cls_pooled" and not stages[-1].pooled:
        raise Refused(
            "pooling must not be cls_pooled: the model has no trained pooler (it takes a run of model.pooling=cls)"
        )
    count = stages[-1].depth + 1
    if not layers:
        raise Refused(str(Problem("layers", "name at least one", list(layers))))
    if strange := [number for number in layers if not -count <= number < count]:
        raise Refused(str(Problem("layers", f"be between {-count} and {count - 1}", strange[0])))
    if len(layers) > count:  # each takes memory for all tokens, named twice or not
        raise Refused(str(Problem("layers", f"be at most {count}", len(layers))))
    numbers = [] if pooling == "cls_pooled" else [number % count for number in layers]
    needed = {*map(layer_name, numbers)} or {"pooled"}
    asked = [[name for name in stage.vectors if name in needed] for stage in stages]
    last = max(number for number, names in enumerate(asked) if names)
    steps = [*((*names, "next_states") for names in asked[:last]), tuple(asked[last])]
    return Vectors(tuple(numbers), pooling, tuple(steps))


def _refusal(manifest: Manifest, engine: str) -> str:
    """Why there is no engine that gives vectors."""
    if manifest.encoder is None:
        return "the bundle is of before vectors could be made: export the run again"
    if others := [name for name, files in manifest.engines.items() if any(stage.layers for stage in files.stages)]:
        return str(Problem("engine", "give the states of layers, which vectors are made of", engine, others))
    if engine == "litert":
        return "LiteRT cannot give the states of layers, which vectors are made of: export with formats=[openvino]"
    return (
        "vectors cannot be made: tasks have weights of their own in the encoder (model.adapters, "
        "model.task_embedding), so that a text's states differ from task to task"
    )

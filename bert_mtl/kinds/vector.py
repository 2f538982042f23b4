"""A given vector for a text (or pair), such as another model's embedding: regression onto it, for distillation."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from keras import ops
from pydantic import PositiveInt

from bert_mtl.kinds.head import DataError, DenseLayer, Head, HeadSettings, LayerContext, register_kind
from bert_mtl.kinds.regression import real_number
from conf.errors import Problem


class VectorSettings(HeadSettings):
    """`cosine` learns the direction of the given vectors, `mse` their numbers: the mean over `dim` of squared errors,
    which for vectors of length 1 is as small as 1/dim, so beside other tasks it wants a `weight`."""

    layer_keys: ClassVar[tuple[str, ...]] = ("dim",)
    dim: PositiveInt
    loss: Literal["cosine", "mse"] = "cosine"


@register_kind("vector")
class Vector(Head):
    """A dense layer to `dim` numbers; answers are vectors `(texts, dim)`, of length 1 where the loss is `cosine`."""

    Settings = VectorSettings
    settings: VectorSettings
    label_dtype = "float32"
    metric = "cosine"

    @property
    def label_shape(self) -> tuple[int]:
        return (self.settings.dim,)

    def encode(self, value: Any, origin: str) -> list[float]:
        dim, what = self.settings.dim, f"the label of head {self.name}"
        if not isinstance(value, list | tuple):
            raise DataError(f"{origin}: {Problem(what, f'be a list of {dim} numbers', value)}")
        if len(value) != dim:
            raise DataError(f"{origin}: {Problem(what, f'hold {dim} numbers', len(value))}")
        return [real_number(self.name, number, origin, "hold finite numbers") for number in value]

    def make_layer(self, context: LayerContext) -> DenseLayer:
        return DenseLayer(context, self.settings.dim)

    def losses(self, outputs: Any, labels: Any) -> Any:
        if self.settings.loss == "mse":
            return ops.mean(ops.square(outputs - labels), axis=-1)
        return 1 - ops.sum(unit(outputs) * unit(labels), axis=-1)

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        return unit(outputs) if self.settings.loss == "cosine" else outputs

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean cosine (0 for a vector of zeros), and the mean squared error of the numbers."""
        return {"cosine": float(cosines(answers, labels).mean()), "mse": float(np.square(answers - labels).mean())}

    def decode(self, answers: np.ndarray) -> list[dict]:
        """`{"vector": [number, …]}` a text."""
        return [{"vector": row} for row in answers.tolist()]

    def export(self) -> dict[str, Any]:
        return super().export() | {"dim": self.settings.dim}


def cosines(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(texts,)` float64 cosines of vectors `(texts, dim)`; 0 where one of them is zeros."""
    lengths = np.linalg.norm(answers, axis=1) * np.linalg.norm(labels, axis=1)
    return np.sum(answers * labels, axis=1) / np.maximum(lengths, 1e-12, dtype=np.float64)


def unit(vectors: Any) -> Any:
    """Vectors `(…, dim)` brought to length 1. Zeros stay zeros and have a gradient, which `ops.normalize` gives as NaN:
    segments that are not there have such vectors."""
    return vectors * ops.rsqrt(ops.maximum(ops.sum(ops.square(vectors), axis=-1, keepdims=True), 1e-12))

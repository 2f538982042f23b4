"""Vectors that are close where texts mean the same: each text finds its partner among those of the batch.

Pairs learn by in-batch softmax (Henderson et al. 2017, "multiple negatives ranking"), single texts as SimCSE (Gao et
al. 2021): a text is read twice, and dropout makes the difference.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import layers, ops
from pydantic import PositiveFloat, PositiveInt

from bert_mtl.kinds.head import Head, HeadSettings, LayerContext, dense, register_kind
from bert_mtl.kinds.regression import pearson, real_number, spearman
from bert_mtl.kinds.vector import unit

SAMPLE = 1000  # vectors compared with each other for metrics


class SimilaritySettings(HeadSettings):
    """Pairs scored below `minimum_score` do not mean the same: they are measured, not learned. `projection` is the size
    of a dense layer on top of the encoder's vectors; null takes them as they are."""

    layer_keys: ClassVar[tuple[str, ...]] = ("projection",)
    temperature: PositiveFloat = 0.05
    projection: PositiveInt | None = None
    minimum_score: float | None = None


@register_kind("similarity")
class Similarity(Head):
    """Answers are two unit vectors an example `(texts, 2, dim)`: its own and its partner's, the very same where both
    texts are equal, zeros where a text has no partner. Scores as labels are optional.

    The metric `score` is the best that the data allow: Spearman's correlation of cosine and given scores, else the
    accuracy of finding the partner, else (single texts) the negative uniformity.
    """

    Settings = SimilaritySettings
    settings: SimilaritySettings
    label_dtype = "float32"
    metric = "score"
    needs_label = False
    separate = True

    def encode(self, value: Any, origin: str) -> list[float]:
        return [real_number(self.name, value, origin)]

    def make_layer(self, context: LayerContext) -> "UnitLayer":
        return UnitLayer(context, self.settings.projection)

    def loss(self, outputs: Any, labels: Any, weights: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Cross-entropy of each example's partner among all partners, and the other way round, mean of both. Examples
        whose partner has no rival in the batch are left out; under several replicas each has rivals of its own.

        Args:
            outputs: `(segments, dim)` unit vectors.
            labels: `(segments,)` scores, NaN where there is none.
            weights: `(segments,)`, above 0 for the first segment of each of this head's examples only.
            inputs: of the model.
        """
        weights, candidate = self._paired(labels, weights, inputs)
        others = ops.take(outputs, inputs["partner"], axis=0)
        cosines = ops.matmul(outputs, ops.transpose(others))
        logits = ops.where(candidate, cosines / self.settings.temperature, -1e9)
        losses = (ops.logsumexp(logits, axis=0) + ops.logsumexp(logits, axis=1)) / 2 - ops.diagonal(logits)
        return ops.sum(ops.where(weights > 0, losses, 0.0) * weights), ops.sum(weights)

    def total_weight(self, labels: Any, weights: Any, inputs: Mapping[str, Any]) -> Any:
        return ops.sum(self._paired(labels, weights, inputs)[0])

    def _paired(self, labels: Any, weights: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """`(segments,)` weights of what is learned from, and `(segments, segments)` who is whose candidate."""
        if self.settings.minimum_score is not None:
            weights = ops.where(labels < self.settings.minimum_score, ops.zeros_like(weights), weights)
        candidate = ops.expand_dims(weights > 0, 0) & ops.expand_dims(weights > 0, 1) & ~rivals(inputs)
        rivalled = ops.sum(ops.cast(candidate, "float32"), axis=1) > 1  # else there is nothing to learn
        return ops.where(rivalled, weights, 0.0), candidate

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        keys, partner = text_keys(inputs), inputs["partner"]
        same = ops.expand_dims(keys == ops.take(keys, partner), 1)
        alone = ops.expand_dims(partner == ops.arange(ops.shape(partner)[0], dtype="int32"), 1)
        second = ops.where(same, outputs, ops.take(outputs, partner, axis=0))
        return ops.stack([outputs, ops.where(alone, 0.0, second)], axis=1)

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`spearman` and `pearson` where there are scores; `alignment` and `uniformity` (Wang & Isola 2020; lower is
        better) of the pairs that are learned, and the `accuracy` of finding the partner among at most `SAMPLE` pairs,
        where texts differ; `score` as the class says."""
        cosines, scored, paired = cosine(answers), ~np.isnan(labels), self.learned(answers, labels)
        found: dict[str, float] = {}
        if scored.any():
            found["spearman"] = spearman(cosines[scored], labels[scored])
            found["pearson"] = pearson(cosines[scored], labels[scored])
        if paired.any():
            found["alignment"] = float(np.square(answers[paired, 0] - answers[paired, 1]).sum(axis=1).mean())
            found["accuracy"] = float(finds_partner(answers[paired][:SAMPLE]).mean())
        found["uniformity"] = uniformity(answers[:SAMPLE, 0])
        return {"score": found.get("spearman", found.get("accuracy", -found["uniformity"])), **found}

    def learned(self, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """`(texts,)`: whether the example is a pair that the head learns from."""
        least = -np.inf if self.settings.minimum_score is None else self.settings.minimum_score
        return two_texts(answers) & ~(labels < least)

    def decode(self, answers: np.ndarray) -> list[dict]:
        """`{"similarity": cosine}` of a pair, `{"vector": [number, …]}` of a text without a partner."""
        return [
            {"similarity": float(similarity)} if vectors[1].any() else {"vector": vectors[0].tolist()}
            for vectors, similarity in zip(answers, cosine(answers), strict=True)
        ]

    def export(self) -> dict[str, Any]:
        return super().export() | {"separate": self.separate}


class UnitLayer(layers.Layer):
    """Vectors `(texts, hidden_dim)` of length 1, in float32; `(texts, dim)` behind a dense layer where `dim` is given.

    No dropout of its own: the encoder's is what sets the two readings of a text apart.
    """

    def __init__(self, context: LayerContext, dim: int | None):
        super().__init__(name=context.name, dtype="float32")
        self.hidden_dim = context.hidden_dim
        self.projection = dense(dim, "projection") if dim else None
        self.build()

    def build(self, input_shape: Any = None) -> None:
        if self.projection is not None:
            self.projection.build((None, self.hidden_dim))

    def call(self, states: Any) -> Any:
        return unit(states if self.projection is None else self.projection(states))


def text_keys(inputs: Mapping[str, Any]) -> Any:
    """`(segments,)` int32 hashes of the segments' tokens in their order: equal for equal texts, and for two unlike ones
    with a chance of 1 in 4 billion."""
    tokens, positions = inputs["token_ids"], inputs["position_ids"]
    # Products that overflow and shifts mix all bits of both, as in MurmurHash3; sums of such numbers then hardly meet.
    mixed = (tokens + 1) * -1640531535 + positions * -2048144789
    mixed = ops.bitwise_xor(mixed, ops.right_shift(mixed, 15)) * -1028477379
    mixed = ops.bitwise_xor(mixed, ops.right_shift(mixed, 13))
    segments = ops.shape(inputs["partner"])[0]
    return ops.segment_sum(ops.reshape(mixed, (-1,)), ops.reshape(inputs["segment_ids"], (-1,)), segments + 1)[1:]


def rivals(inputs: Mapping[str, Any]) -> Any:
    """`(segments, segments)`: whether two examples, named by a segment each, share a text. Then neither is a wrong
    answer for the other."""
    keys = text_keys(inputs)
    theirs = ops.take(keys, inputs["partner"])

    def equal(a: Any, b: Any) -> Any:
        return ops.expand_dims(a, 1) == ops.expand_dims(b, 0)

    shared = equal(keys, keys) | equal(theirs, theirs) | equal(keys, theirs) | equal(theirs, keys)
    return shared & ~ops.eye(ops.shape(keys)[0], dtype="bool")


def cosine(answers: np.ndarray) -> np.ndarray:
    """`(texts,)` cosines of the two unit vectors of each example."""
    return np.sum(answers[:, 0] * answers[:, 1], axis=1)


def two_texts(answers: np.ndarray) -> np.ndarray:
    """`(texts,)`: whether the example has two unlike texts."""
    return (answers[:, 0] != answers[:, 1]).any(axis=1)


def finds_partner(answers: np.ndarray) -> np.ndarray:
    """`(texts,)`: whether the first vector's nearest second vector is its own; a text that stands twice misses once."""
    return (answers[:, 0] @ answers[:, 1].T).argmax(axis=1) == np.arange(len(answers))


def uniformity(vectors: np.ndarray) -> float:
    """Logarithm of the mean of exp(-2 · squared distance) over pairs of unit vectors `(texts, dim)` (Wang & Isola
    2020): 0 where all are the same, about -4 where they are spread evenly; 0 for less than two vectors."""
    if len(vectors) < 2:
        return 0.0
    upper = np.triu_indices(len(vectors), 1)
    squared = 2 - 2 * (vectors @ vectors.T)[upper].astype(np.float64)
    return float(np.log(np.exp(-2 * squared).mean()))

"""Which token stood at a masked place: BERT's masked language modelling, the output tied to the word embeddings."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from keras import layers, ops
from pydantic import Field

from bert_mtl.kinds.head import Head, HeadSettings, LayerContext, initializer, register_kind

GUESSES = 5  # tokens an answer holds, most probable first


class MaskedLanguageSettings(HeadSettings):
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15


@register_kind("mlm")
class MaskedLanguage(Head):
    """Softmax over the vocabulary at every masked place (Devlin et al. 2019; the places: `bert_mtl.masking`).

    Answers are `(places, 1 + 2 * GUESSES)` float32: log probability of the label, the most probable ids, their
    probabilities.
    """

    Settings = MaskedLanguageSettings
    settings: MaskedLanguageSettings
    level = "mask"

    @property
    def metric(self) -> str:
        return "accuracy"

    def make_layer(self, context: LayerContext) -> "TiedLayer":
        return TiedLayer(context, dtype=context.dtype)

    def losses(self, outputs: Any, labels: Any) -> Any:
        return ops.sparse_categorical_crossentropy(labels, outputs, from_logits=True)

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        total = ops.logsumexp(outputs, axis=-1, keepdims=True)
        own = ops.take_along_axis(outputs, ops.expand_dims(ops.maximum(labels, 0), 1), axis=1)
        best, ids = ops.top_k(outputs, GUESSES)
        ids = ops.cast(ids, "float32")  # exact up to 2^24
        return ops.concatenate([own - total, ids, ops.exp(best - total)], axis=1)

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        loss = -float(answers[:, 0].mean(dtype=np.float64))
        return {"accuracy": float((answers[:, 1] == labels).mean()), "loss": loss, "perplexity": math.exp(loss)}

    def decode(self, answers: np.ndarray) -> list[dict]:
        """`{"ids": [...], "probabilities": [...]}` a place, most probable first."""
        ids, probabilities = answers[:, 1 : 1 + GUESSES].astype(int), answers[:, 1 + GUESSES :]
        return [
            {"ids": row, "probabilities": shares}
            for row, shares in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]


class TiedLayer(layers.Layer):
    """BERT's output layer: states `(places, hidden_dim)` to float32 logits `(places, vocab_size)`.

    Dense, GELU and LayerNorm, then the product with the word embeddings plus a bias. The products run in the compute
    dtype; LayerNorm, bias and all that follows in float32. Logits take `4 * places * vocab_size` bytes: 125 MB for
    1,024 places and 30,522 tokens.
    """

    def __init__(self, context: LayerContext, **kwargs: Any):
        super().__init__(name=context.name, **kwargs)
        self.hidden_dim = context.hidden_dim
        self.vocab_size = context.word_embeddings.shape[0]
        # A function, because Keras would count a variable among this layer's own weights.
        self.word_embeddings = lambda: context.word_embeddings
        self.frozen_words = context.frozen_words
        self.transform = layers.Dense(
            self.hidden_dim, kernel_initializer=initializer(), dtype=self.dtype_policy, name="transform"
        )
        self.norm = layers.LayerNormalization(epsilon=1e-12, dtype="float32", name="norm")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.transform, self.norm):
            layer.build((None, self.hidden_dim))
        self.bias = self.add_weight(name="bias", shape=(self.vocab_size,), initializer="zeros", autocast=False)

    def call(self, states: Any, training: bool = False) -> Any:
        states = self.norm(gelu(self.transform(states)))
        table = ops.cast(self.word_embeddings(), self.compute_dtype)
        table = ops.stop_gradient(table) if self.frozen_words else table
        logits = ops.matmul(ops.cast(states, self.compute_dtype), ops.transpose(table))
        return ops.cast(logits, "float32") + self.bias


def gelu(x: Any) -> Any:
    """Exact GELU by `erf`, as in `bert_mtl.encoder`, which lies above the kinds."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))

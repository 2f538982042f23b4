"""From token states to logits: how an example's states become one vector; the layer and the loss of each kind."""

import keras
import numpy as np
from keras import layers, ops

from bert_mtl.config import HeadConfig


def mean_states(states, segment_ids, examples: int):
    """Mean of each example's token states.

    Args:
        states: `(rows, length, hidden_dim)`.
        segment_ids: `(rows, length)`, the 1-based number of the example a token belongs to, 0 for padding.
        examples: how many examples the batch holds at most.

    Returns:
        `(examples, hidden_dim)` float32; zeros for numbers no token carries.
    """
    flat = ops.cast(ops.reshape(states, (-1, states.shape[-1])), "float32")
    numbers = ops.reshape(segment_ids, (-1,))
    sums = ops.segment_sum(flat, numbers, examples + 1)
    counts = ops.segment_sum(ops.ones_like(numbers, dtype="float32"), numbers, examples + 1)
    return (sums / ops.maximum(ops.expand_dims(counts, 1), 1.0))[1:]


def first_states(states, first_token):
    """The `(examples, hidden_dim)` states at the flat places `first_token` `(examples,)` of `states`."""
    return ops.take(ops.reshape(states, (-1, states.shape[-1])), first_token, axis=0)


class ClassificationHead(layers.Layer):
    """Dropout and a dense layer: vectors `(examples, hidden_dim)` to logits `(examples, labels)`, in float32."""

    def __init__(self, hidden_dim: int, labels: int, dropout: float, *, seed: int, name: str):
        super().__init__(name=name, dtype="float32")
        self.hidden_dim = hidden_dim
        self.dropout = layers.Dropout(dropout, seed=seed, dtype="float32")
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        self.dense = layers.Dense(labels, kernel_initializer=initializer, dtype="float32", name="logits")
        self.build()

    def build(self, input_shape=None) -> None:
        self.dense.build((None, self.hidden_dim))

    def call(self, states, training=False):
        return self.dense(self.dropout(states, training=training))


class ClassificationLoss(keras.losses.Loss):
    """Cross-entropy of logits, averaged over the examples that count (`sample_weight`).

    Args:
        label_smoothing: share of each target spread over all labels (Szegedy et al. 2016).
        class_weights: `(labels,)` factors of the losses of each label's examples.
    """

    def __init__(self, label_smoothing: float, class_weights: np.ndarray, name: str):
        super().__init__(name=name, reduction="mean_with_sample_weight")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def call(self, y_true, y_pred):
        y_true, count = ops.cast(y_true, "int32"), len(self.class_weights)  # Keras hands labels over as floats
        target = (1 - self.label_smoothing) * ops.one_hot(y_true, count) + self.label_smoothing / count
        weights = ops.take(ops.convert_to_tensor(self.class_weights, "float32"), y_true, axis=0)
        return weights * ops.categorical_crossentropy(target, y_pred, from_logits=True)


def class_weights(head: HeadConfig, counts: dict[str, int]) -> np.ndarray:
    """`(labels,)` weights: the configured ones, ones, or `balanced`: inverse frequency, of mean 1 over train."""
    if head.class_weights == "balanced":
        present = np.array([max(counts[label], 1) for label in head.labels], np.float32)
        return present.sum() / (len(present) * present)
    return np.asarray(head.class_weights or np.ones(len(head.labels)), np.float32)

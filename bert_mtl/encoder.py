"""Packed token ids in, token states out: BERT as one Keras model.

Rows may hold several examples (segments); attention is block-diagonal, so a segment never sees its neighbours.
Only `keras.ops` and `keras.layers` are used: the encoder runs on every Keras backend.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import keras
from keras import layers, ops


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a BERT encoder (Devlin et al. 2019); `model.size` of the configuration."""

    vocab_size: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    intermediate_dim: int
    max_positions: int = 512
    type_vocab_size: int = 2
    layer_norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    pooler: bool = True


class BertEncoder(keras.Model):
    """Token states of packed rows; all variables exist as soon as the encoder does.

    Args:
        config: the sizes.
        dtype: a Keras dtype policy such as `"mixed_bfloat16"`; LayerNorm and softmax stay in float32.
        seed: the one seed of all dropout masks; initial weights follow `keras.utils.set_random_seed`.

    Example:
        >>> encoder = BertEncoder(EncoderConfig(30522, 384, 6, 12, 1536))
        >>> ids = keras.ops.ones((2, 8), "int32")
        >>> inputs = dict(token_ids=ids, type_ids=0 * ids, segment_ids=ids, position_ids=0 * ids)
        >>> encoder(inputs).shape
        TensorShape([2, 8, 384])
    """

    def __init__(self, config: EncoderConfig, *, dtype=None, seed: int = 0, name: str = "encoder"):
        super().__init__(dtype=dtype, name=name)
        self.config = config
        seeds = random.Random(seed)
        self.embeddings = BertEmbeddings(config, seeds, dtype=self.dtype_policy, name="embeddings")
        self.transformer_layers = [
            TransformerLayer(config, seeds, dtype=self.dtype_policy, name=f"layer_{i}")
            for i in range(config.num_layers)
        ]
        self.pooler = None
        if config.pooler:
            self.pooler = _dense(config.hidden_dim, self.dtype_policy, "pooler", activation="tanh")
        self.build()

    def build(self, input_shape=None) -> None:
        """Creates every variable; no size depends on the inputs."""
        states_shape = (None, self.config.hidden_dim)
        self.embeddings.build(states_shape)
        for layer in self.transformer_layers:
            layer.build(states_shape)
        if self.pooler is not None:
            self.pooler.build(states_shape)

    def call(self, inputs, training=False):
        """Returns the last layer's states `(rows, length, hidden_dim)`, BERT's sequence_output.

        `inputs` holds int32 tensors `(rows, length)`: `token_ids`, `type_ids`, `position_ids` (restarting in each
        segment) and `segment_ids` (0 is padding, otherwise the number of the example in its row).
        """
        return self.hidden_states(inputs, training=training)[-1]

    def hidden_states(self, inputs, training=False) -> list:
        """Returns the embeddings' and every layer's states, `num_layers + 1` tensors `(rows, length, hidden_dim)`."""
        embedded = self.embeddings(inputs, training=training)
        bias = attention_bias(inputs["segment_ids"])
        states = [ops.reshape(embedded, (-1, self.config.hidden_dim))]
        for layer in self.transformer_layers:
            states.append(layer(states[-1], bias, training=training))
        return [ops.reshape(state, ops.shape(embedded)) for state in states]

    def pool(self, first_states):
        """Returns BERT's pooled_output `(examples, hidden_dim)` from the states of the examples' first tokens."""
        if self.pooler is None:
            raise ValueError("EncoderConfig.pooler must be true where a head reads pooled_output; got False.")
        return self.pooler(first_states)


class BertEmbeddings(layers.Layer):
    """The normalised sum of word, position and type embeddings.

    The tables are read in float32 under every policy: casting `vocab_size` rows to fetch a few would cost more.
    """

    def __init__(self, config: EncoderConfig, seeds: random.Random, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        self.norm = layers.LayerNormalization(epsilon=config.layer_norm_epsilon, dtype="float32", name="norm")
        self.dropout = layers.Dropout(config.dropout, seed=seeds.getrandbits(31), dtype=self.dtype_policy)

    def build(self, states_shape) -> None:
        self.word_table = self._table("word_embeddings", self.config.vocab_size)
        self.position_table = self._table("position_embeddings", self.config.max_positions)
        self.type_table = self._table("type_embeddings", self.config.type_vocab_size)
        self.norm.build(states_shape)

    def call(self, inputs, training=False):
        # With a handful of types a gather's gradient adds every token into the same few rows; a product does not.
        types = ops.one_hot(inputs["type_ids"], self.config.type_vocab_size, dtype="float32")
        states = ops.take(self.word_table, inputs["token_ids"], axis=0)
        states = states + ops.take(self.position_table, inputs["position_ids"], axis=0)
        states = states + ops.matmul(types, self.type_table)
        return self.dropout(ops.cast(self.norm(states), self.compute_dtype), training=training)

    def _table(self, name: str, rows: int):
        shape = (rows, self.config.hidden_dim)
        return self.add_weight(name=name, shape=shape, initializer=_initializer(), autocast=False)


class TransformerLayer(layers.Layer):
    """Self-attention and a feed-forward network, each with a residual and a LayerNorm after it.

    States come and go as `(rows * length, hidden_dim)`: on CPUs TensorFlow then computes product, bias and GELU in one.
    """

    def __init__(self, config: EncoderConfig, seeds: random.Random, **kwargs):
        super().__init__(autocast=False, **kwargs)  # else the float32 bias would be cast to bfloat16
        self.num_heads = config.num_heads
        self.head_dim = config.hidden_dim // config.num_heads
        self.intermediate_dim = config.intermediate_dim
        policy, epsilon = self.dtype_policy, config.layer_norm_epsilon
        self.qkv = _dense(3 * config.hidden_dim, policy, "qkv")
        self.attention_output = _dense(config.hidden_dim, policy, "attention_output")
        self.attention_norm = layers.LayerNormalization(epsilon=epsilon, dtype="float32", name="attention_norm")
        self.intermediate = _dense(config.intermediate_dim, policy, "intermediate")
        self.feedforward_output = _dense(config.hidden_dim, policy, "output")
        self.output_norm = layers.LayerNormalization(epsilon=epsilon, dtype="float32", name="output_norm")
        self.dropout = layers.Dropout(config.dropout, seed=seeds.getrandbits(31), dtype=policy)
        self.attention_dropout = layers.Dropout(config.attention_dropout, seed=seeds.getrandbits(31), dtype=policy)

    def build(self, states_shape) -> None:
        for layer in (self.qkv, self.attention_output, self.attention_norm, self.intermediate, self.output_norm):
            layer.build(states_shape)
        self.feedforward_output.build((None, self.intermediate_dim))

    def call(self, states, bias, training=False):
        attended = self.attention_output(self._attend(states, bias, training))
        states = self._add_and_norm(self.attention_norm, states, attended, training)
        transformed = self.feedforward_output(gelu(self.intermediate(states)))
        return self._add_and_norm(self.output_norm, states, transformed, training)

    def _attend(self, states, bias, training):
        """Returns the heads' contexts side by side, `(rows * length, hidden_dim)`."""
        rows, _, _, length = ops.shape(bias)
        shape = (rows, length, self.num_heads, self.head_dim)
        query, key, value = (ops.reshape(part, shape) for part in ops.split(self.qkv(states), 3, axis=-1))
        query, value = (ops.transpose(part, (0, 2, 1, 3)) for part in (query, value))
        scores = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1))) * (1.0 / math.sqrt(self.head_dim))
        weights = ops.softmax(ops.cast(scores, "float32") + bias)
        weights = self.attention_dropout(ops.cast(weights, self.compute_dtype), training=training)
        context = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return ops.reshape(context, (-1, self.num_heads * self.head_dim))

    def _add_and_norm(self, norm, states, update, training):
        return ops.cast(norm(states + self.dropout(update, training=training)), self.compute_dtype)


def attention_bias(segment_ids):
    """Returns float32 `(rows, 1, length, length)`: 0 between tokens of one segment, -1e9 elsewhere.

    Padding is segment 0 and attends to padding, so no softmax runs over nothing.
    """
    same = ops.equal(ops.expand_dims(segment_ids, 2), ops.expand_dims(segment_ids, 1))
    return ops.expand_dims((1.0 - ops.cast(same, "float32")) * -1e9, 1)


def gelu(x):
    """Exact GELU (Hendrycks & Gimpel 2016), written with `erf`: Keras' own form becomes an `Erfc` ONNX cannot name."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def _dense(units: int, policy, name: str, activation: str | None = None) -> layers.Dense:
    return layers.Dense(units, activation=activation, kernel_initializer=_initializer(), dtype=policy, name=name)


def _initializer() -> keras.Initializer:
    """BERT's own; a fresh one for each variable, because one object repeats the same numbers for equal shapes."""
    return keras.initializers.TruncatedNormal(stddev=0.02)

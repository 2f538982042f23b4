"""Packed token ids in, token states out: BERT as one Keras model.

Rows may hold several examples (segments); attention is block-diagonal, so a segment never sees its neighbours.
All tasks share the encoder; `bert_mtl.adapters` holds what a task may have of its own within it.
Only `keras.ops` and `keras.layers` are used: the encoder runs on every Keras backend.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import keras
from keras import layers, ops

from bert_mtl.adapters import TaskAdapter, TaskLayerNorm, is_own, stop_gradients
from bert_mtl.dropout import Dropout

# (query, key, value, bias) -> context: the bias `(rows, 1, length, length)` is `attention_bias`'s, all other tensors
# are `(rows, length, heads, head_dim)`, the queries not yet scaled.
Attention = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a BERT encoder (Devlin et al. 2019), and what each of `tasks` has of its own in it.

    `adapters` are `bottleneck` of width `adapter_dim` after every feed-forward part (where Pfeiffer et al. 2021 found
    one as good as two), or `layer_norm`: gains and biases. `task_embedding` adds a vector of the task to its tokens.
    """

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
    tasks: int = 1
    adapters: Literal["none", "bottleneck", "layer_norm"] = "none"
    adapter_dim: int = 64
    task_embedding: bool = False

    @property
    def reads_tasks(self) -> bool:
        """Whether the encoder's inputs must hold `token_task`."""
        return self.adapters != "none" or self.task_embedding


class BertEncoder(keras.Model):
    """Token states of packed rows; all variables exist as soon as the encoder does.

    Args:
        config: the sizes.
        dtype: a Keras dtype policy such as `"mixed_bfloat16"`; LayerNorm and softmax stay in float32.
        seed: the one seed of all dropout masks; initial weights follow `keras.utils.set_random_seed`.
        training_attention: what training computes attention by, without dropout; None takes `plain_attention`, as all
            other calls do. The weights are the same.

    Example:
        >>> encoder = BertEncoder(EncoderConfig(30522, 384, 6, 12, 1536))
        >>> ids = keras.ops.ones((2, 8), "int32")
        >>> inputs = dict(token_ids=ids, type_ids=0 * ids, segment_ids=ids, position_ids=0 * ids)
        >>> encoder(inputs).shape
        TensorShape([2, 8, 384])
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype=None,
        seed: int = 0,
        training_attention: Attention | None = None,
        name: str = "encoder",
    ):
        super().__init__(dtype=dtype, name=name)
        self.config = config
        seeds = random.Random(seed)
        self.embeddings = BertEmbeddings(config, seeds, dtype=self.dtype_policy, name="embeddings")
        self.transformer_layers = [
            TransformerLayer(config, seeds, training_attention, dtype=self.dtype_policy, name=f"layer_{i}")
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

    @property
    def shared_weights(self) -> list[keras.Variable]:
        """The weights that all tasks share: those of a plain BERT."""
        return [variable for variable in self.weights if not is_own(variable.path)]

    def freeze(self, blocks: int) -> None:
        """Keeps the shared weights of the lowest `blocks` (see `adapters.frozen_blocks`) from learning.

        What tasks have of their own goes on learning: with all blocks frozen, adapters as Houlsby et al. use them.
        """
        parts = [self.embeddings, *self.transformer_layers, *([self.pooler] if self.pooler is not None else [])]
        frozen = parts if blocks > self.config.num_layers else parts[:blocks]
        for variable in (variable for part in frozen for variable in part.weights):
            variable.trainable = variable.trainable and is_own(variable.path)

    def call(self, inputs, training=False, frozen: Sequence[int] | None = None):
        """Returns the last layer's states `(rows, length, hidden_dim)`, BERT's sequence_output.

        `inputs` holds int32 tensors `(rows, length)`: `token_ids`, `type_ids`, `position_ids` (restarting in each
        segment) and `segment_ids` (0 is padding, otherwise the number of the example in its row); and `token_task`
        (0 is padding, otherwise 1 + the number of the task) where `EncoderConfig.reads_tasks` or `frozen` is given.
        `frozen` says for each task how many of the lowest blocks its tokens may not change: no gradient of theirs
        passes that depth, so what the task has of its own below does not learn either.
        """
        return self.hidden_states(inputs, training=training, frozen=frozen)[-1]

    def hidden_states(self, inputs, training=False, frozen: Sequence[int] | None = None) -> list:
        """Returns the embeddings' and every layer's states, `num_layers + 1` tensors `(rows, length, hidden_dim)`."""
        embedded = self.embed(inputs, training=training, frozen=frozen)
        through = self.run_layers(embedded, inputs, 0, self.config.num_layers, training=training, frozen=frozen)
        return [embedded, *through]

    def embed(self, inputs, training=False, frozen: Sequence[int] | None = None):
        """Returns the embeddings' states `(rows, length, hidden_dim)`, which the first layer reads."""
        embedded = self.embeddings(inputs, self._tasks(inputs, frozen), training=training)
        flat = ops.reshape(embedded, (-1, self.config.hidden_dim))
        return ops.reshape(_stop_at(1, flat, self._flat_tasks(inputs, frozen), frozen), ops.shape(embedded))

    def run_layers(
        self, states, inputs, first: int, last: int, training=False, frozen: Sequence[int] | None = None
    ) -> list:
        """Returns the states after each of the layers numbered `first + 1` to `last` (the lowest is 1), from `states`,
        those after layer `first` (0: of `embed`); all are `(rows, length, hidden_dim)`."""
        shape, tasks = ops.shape(states), self._flat_tasks(inputs, frozen)
        bias = attention_bias(inputs["segment_ids"])
        flat, found = ops.reshape(states, (-1, self.config.hidden_dim)), []
        for number, layer in enumerate(self.transformer_layers[first:last], start=first + 1):
            flat = _stop_at(number + 1, layer(flat, bias, tasks, training=training), tasks, frozen)
            found.append(ops.reshape(flat, shape))
        return found

    def _tasks(self, inputs, frozen: Sequence[int] | None):
        """`(rows, length, tasks)`: 1 in the column of each token's task, where they are read."""
        if not (self.config.reads_tasks or frozen):
            return None
        return ops.one_hot(inputs["token_task"] - 1, self.config.tasks, dtype="float32")

    def _flat_tasks(self, inputs, frozen: Sequence[int] | None):
        tasks = self._tasks(inputs, frozen)
        return None if tasks is None else ops.reshape(tasks, (-1, self.config.tasks))

    def pool(self, first_states, task=None, frozen: Sequence[int] | None = None):
        """Returns BERT's pooled_output `(examples, hidden_dim)` from the states of the examples' first tokens.

        With `frozen`, `task` `(examples,)` int32 numbers their tasks (-1: none): one whose blocks are all frozen does
        not change the pooler.
        """
        if self.pooler is None:
            raise ValueError("EncoderConfig.pooler must be true where a head reads pooled_output; got False.")
        tasks = None if frozen is None else ops.one_hot(task, self.config.tasks, dtype="float32")
        return _stop_at(self.config.num_layers + 1, self.pooler(first_states), tasks, frozen)


class BertEmbeddings(layers.Layer):
    """The normalised sum of word, position and type embeddings.

    The tables are read in float32 under every policy: casting `vocab_size` rows to fetch a few would cost more.
    """

    def __init__(self, config: EncoderConfig, seeds: random.Random, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        self.norm = _norm(config, "norm")
        self.dropout = Dropout(config.dropout, seed=seeds.getrandbits(31), dtype=self.dtype_policy)

    def build(self, states_shape) -> None:
        self.word_table = self._table("word_embeddings", self.config.vocab_size)
        self.position_table = self._table("position_embeddings", self.config.max_positions)
        self.type_table = self._table("type_embeddings", self.config.type_vocab_size)
        if self.config.task_embedding:
            self.task_table = self._table("task_embeddings", self.config.tasks, "zeros")
        self.norm.build(states_shape)

    def call(self, inputs, tasks=None, training=False):
        # With a handful of types a gather's gradient adds every token into the same few rows; a product does not.
        types = ops.one_hot(inputs["type_ids"], self.config.type_vocab_size, dtype="float32")
        states = ops.take(self.word_table, inputs["token_ids"], axis=0)
        states = states + ops.take(self.position_table, inputs["position_ids"], axis=0)
        states = states + ops.matmul(types, self.type_table)
        if self.config.task_embedding:
            states = states + ops.matmul(tasks, self.task_table)
        return self.dropout(ops.cast(self.norm(states, tasks), self.compute_dtype), training=training)

    def _table(self, name: str, rows: int, initializer=None):
        shape = (rows, self.config.hidden_dim)
        return self.add_weight(name=name, shape=shape, initializer=initializer or _initializer(), autocast=False)


class TransformerLayer(layers.Layer):
    """Self-attention and a feed-forward network, each with a residual and a LayerNorm after it.

    States come and go as `(rows * length, hidden_dim)`: on CPUs TensorFlow then computes product, bias and GELU in one.
    """

    def __init__(
        self, config: EncoderConfig, seeds: random.Random, training_attention: Attention | None = None, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)  # else the float32 bias would be cast to bfloat16
        self.training_attention = training_attention
        self.num_heads = config.num_heads
        self.head_dim = config.hidden_dim // config.num_heads
        self.intermediate_dim = config.intermediate_dim
        policy = self.dtype_policy
        self.qkv = _dense(3 * config.hidden_dim, policy, "qkv")
        self.attention_output = _dense(config.hidden_dim, policy, "attention_output")
        self.attention_norm = _norm(config, "attention_norm")
        self.intermediate = _dense(config.intermediate_dim, policy, "intermediate")
        self.feedforward_output = _dense(config.hidden_dim, policy, "output")
        self.adapter = None
        if config.adapters == "bottleneck":
            sizes = (config.tasks, config.adapter_dim, config.hidden_dim)
            self.adapter = TaskAdapter(*sizes, activation=gelu, dtype=policy, name="task_adapter")
        self.output_norm = _norm(config, "output_norm")
        self.dropout = Dropout(config.dropout, seed=seeds.getrandbits(31), dtype=policy)
        self.attention_dropout = Dropout(config.attention_dropout, seed=seeds.getrandbits(31), dtype=policy)

    def build(self, states_shape) -> None:
        for layer in (self.qkv, self.attention_output, self.attention_norm, self.intermediate, self.output_norm):
            layer.build(states_shape)
        self.feedforward_output.build((None, self.intermediate_dim))
        if self.adapter is not None:
            self.adapter.build(states_shape)

    def call(self, states, bias, tasks=None, training=False):
        attended = self.attention_output(self._attend(states, bias, training))
        states = self._add_and_norm(self.attention_norm, states, attended, tasks, training)
        transformed = self.feedforward_output(gelu(self.intermediate(states)))
        if self.adapter is not None:
            transformed = self.adapter(transformed, tasks)
        return self._add_and_norm(self.output_norm, states, transformed, tasks, training)

    def _attend(self, states, bias, training):
        """Returns the heads' contexts side by side, `(rows * length, hidden_dim)`."""
        rows, _, _, length = ops.shape(bias)
        shape = (rows, length, self.num_heads, self.head_dim)
        query, key, value = (ops.reshape(part, shape) for part in self._projected(states, training))
        attention = self.training_attention if training else None
        if attention is None:
            attention = partial(plain_attention, drop=partial(self.attention_dropout, training=training))
        return ops.reshape(attention(query, key, value, bias), (-1, self.num_heads * self.head_dim))

    def _projected(self, states, training):
        """Queries, keys and values: in training a product each, because flash attention reads them as arrays of their
        own, and parts of one product would be copied; else parts of one, whose weights need no copies."""
        if not training:
            return ops.split(self.qkv(states), 3, axis=-1)
        kernels, biases = (
            ops.split(ops.cast(variable, self.compute_dtype), 3, axis=-1) for variable in self.qkv.weights
        )
        return [ops.matmul(states, kernel) + bias for kernel, bias in zip(kernels, biases, strict=True)]

    def _add_and_norm(self, norm, states, update, tasks, training):
        return ops.cast(norm(states + self.dropout(update, training=training), tasks), self.compute_dtype)


def plain_attention(query, key, value, bias, drop: Callable[[Any], Any] = lambda weights: weights):
    """An `Attention` of any shape and type, its softmax in float32; `drop` changes the attention weights."""
    query = query * (1.0 / math.sqrt(query.shape[-1]))  # smaller than the scores, which every operation must stream
    query, value = (ops.transpose(part, (0, 2, 1, 3)) for part in (query, value))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))
    weights = ops.softmax(ops.cast(scores, "float32") + bias)
    return ops.transpose(ops.matmul(drop(ops.cast(weights, value.dtype)), value), (0, 2, 1, 3))


def attention_bias(segment_ids):
    """Returns float32 `(rows, 1, length, length)`: 0 between tokens of one segment, -1e9 elsewhere.

    Padding is segment 0 and attends to padding, so no softmax runs over nothing.
    """
    same = ops.equal(ops.expand_dims(segment_ids, 2), ops.expand_dims(segment_ids, 1))
    # Not 1 - same, times -1e9: OpenVINO takes that for the scale of 8-bit numbers, and scores of 1 vanish beside 1e9.
    return ops.expand_dims(ops.where(same, 0.0, -1e9), 1)


def gelu(x):
    """Exact GELU (Hendrycks & Gimpel 2016), written with `erf`: Keras' own form becomes an `Erfc` ONNX cannot name."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def _stop_at(depth: int, states, tasks, frozen: Sequence[int] | None):
    """The states after `depth` blocks; no gradient passes those of tasks that have exactly so many blocks frozen."""
    if frozen is None or depth not in frozen:
        return states
    return stop_gradients(states, tasks, [blocks == depth for blocks in frozen])


def _norm(config: EncoderConfig, name: str) -> TaskLayerNorm:
    tasks = config.tasks if config.adapters == "layer_norm" else 0
    return TaskLayerNorm(tasks, epsilon=config.layer_norm_epsilon, dtype="float32", name=name)


def _dense(units: int, policy, name: str, activation: str | None = None) -> layers.Dense:
    return layers.Dense(units, activation=activation, kernel_initializer=_initializer(), dtype=policy, name=name)


def _initializer() -> keras.Initializer:
    """BERT's own; a fresh one for each variable, because one object repeats the same numbers for equal shapes."""
    return keras.initializers.TruncatedNormal(stddev=0.02)

"""Exits: heads on states between the encoder's layers, trained with the model, by which easy texts may leave early.

Teerapittayanon et al. 2016 (BranchyNet); the loss is that of Zhou et al. 2020 (PABEE).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
from keras import layers, ops

from bert_mtl.adapters import stop_gradients
from bert_mtl.kinds.head import Head, LayerContext, initializer


class Exit(layers.Layer):
    """What answers after layer number `depth`: a layer for each head, with `cls` pooling behind a pooler of the exit's
    own; the paths of its variables begin with `exit_<depth>/`.

    Args:
        depth: how many of the encoder's layers have made the states.
        heads: each with what its layer here is made from.
        pooler: whether there is one.
        frozen: for each task, how many of the encoder's lowest blocks its examples leave unchanged.
    """

    def __init__(self, depth: int, heads: Mapping[str, tuple[Head, LayerContext]], pooler: bool, frozen: Sequence[int]):
        super().__init__(name=f"exit_{depth}", autocast=False)  # else a mean, which is float32, would lose digits
        self.depth = depth
        self.stopped = tuple(blocks > depth for blocks in frozen)  # the embeddings are a block too
        self.pooler = None
        with keras.name_scope(self.name):
            if pooler:
                _, context = next(iter(heads.values()))
                self.pooler = _pooler(context.hidden_dim, context.dtype)
            self.head_layers = {name: head.make_layer(context) for name, (head, context) in heads.items()}
        self.built = True  # every variable exists already

    def call(self, vectors: Any, task: Any, training: bool = False) -> dict[str, Any]:
        """Outputs of all heads, from the vectors `(segments, hidden_dim)` of texts whose tasks have the numbers `task`
        `(segments,)`: means of their states, or the states of their first tokens where there is a pooler."""
        if any(self.stopped):
            tasks = ops.one_hot(task, len(self.stopped), dtype=vectors.dtype)
            vectors = stop_gradients(vectors, tasks, self.stopped)
        if self.pooler is not None:
            vectors = self.pooler(vectors)
        return {name: layer(vectors, training=training) for name, layer in self.head_layers.items()}


def _pooler(size: int, dtype: Any) -> layers.Dense:
    """BERT's: a pretrained one is of the last layer."""
    pooler = layers.Dense(size, "tanh", kernel_initializer=initializer(), dtype=dtype, name="pooler")
    pooler.build((None, size))
    return pooler


def depth_weights(depths: Iterable[int]) -> dict[int, float]:
    """Depth -> what the loss there counts in the mean over all: the deeper, the more (Zhou et al. 2020)."""
    depths = list(depths)
    return {depth: depth / sum(depths) for depth in depths}


def exit_name(head: str, depth: int) -> str:
    """What a head is called where it answers after layer number `depth`; no head has such a name of its own."""
    return f"{head}@{depth}"


def head_of(name: str) -> str:
    """The head that a name of `exit_name`, or its own, means."""
    return name.split("@")[0]
